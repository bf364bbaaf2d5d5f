"""What this process did, counted: the numbers behind `/metrics`.

`Metrics` is what the lease machinery, the packs, the stores and the requests tell things to. How
the leases stand is not counted but read: gateway/metrics_state.py. Every app has a registry of its
own, and no label holds an id.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gateway.packs.observe import SlotAnswer
from leases.model import LeaseActivated, Outcome, Trigger
from leases.ports import Clock
from leases.room import QUOTAS

TEXT_FORMAT = CONTENT_TYPE_PLAIN_0_0_4
# DESIGN 1 promises a second; 10 ms is what an idle machine needs, 10 s what a page is sent for.
_LATENESS_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600)
_DATABASE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_STORE_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_LONG_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_FAILED, _HANDED_BACK = "failed", "handed_back"
_STORE_CALLS = ("put", "get", "delete", "delete_many", "head", "abort_uploads")
_CIRCUITS = ("deleting", "reading", "writing")
_TASKS = ("owner_check", "start_up_sweep", "periodic_sweep", "reconcile", "log_check")
# Any other word in a request's first line is somebody's invention, and would be a new series.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})


class Metrics:
    """Counts. Implements the observers of `leases`, of the packs, and of timed stores."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._make_lease_metrics()
        self._make_io_metrics()
        self._make_request_metrics()

    def text(self) -> bytes:
        """Everything in Prometheus' text format, as `TEXT_FORMAT` names it."""
        return generate_latest(_WithoutCreated(self.registry))

    def _counter(self, name: str, told: str, labels: Sequence[str] = ()) -> Counter:
        return Counter(name, told, labels, registry=self.registry)

    def _gauge(self, name: str, told: str, labels: Sequence[str] = ()) -> Gauge:
        return Gauge(name, told, labels, registry=self.registry)

    def _histogram(
        self, name: str, told: str, buckets: Sequence[float], *, labels: Sequence[str] = ()
    ) -> Histogram:
        return Histogram(name, told, labels, buckets=buckets, registry=self.registry)

    # Leases: leases.observe.Observer. ------------------------------------------------------------

    def _make_lease_metrics(self) -> None:
        self._events = self._counter(
            "mpack_events_appended", "Events that this process appended to the log.", ["type"]
        )
        self._issued = self._counter("mpack_leases_issued", "Leases that became active.")
        self._deletions = self._counter(
            "mpack_deletions",
            "Blobs of ended leases, by what their deletion came to and what made a worker look.",
            ["outcome", "trigger"],
        )
        for outcome in (Outcome.DELETED, Outcome.ALREADY_GONE, _FAILED, _HANDED_BACK):
            for trigger in Trigger:
                self._deletions.labels(outcome, trigger)
        self._lateness = self._histogram(
            "mpack_lateness_seconds",
            "How long after its deadline a blob was gone.",
            _LATENESS_SECONDS,
        )
        self._openings = self._counter(
            "mpack_circuit_openings", "Times that the store was found to be out.", ["circuit"]
        )
        self._probes = self._counter(
            "mpack_circuit_probes",
            "Questions whether the store is there, while it is out or seems to be.",
            ["circuit", "result"],
        )
        for circuit in _CIRCUITS:
            self._openings.labels(circuit)
            for result in ("ok", _FAILED):
                self._probes.labels(circuit, result)
        self._tasks = self._counter(
            "mpack_tasks", "Turns of what runs by itself.", ["task", "result"]
        )
        self._task_ok_at = self._gauge(
            "mpack_task_last_success_timestamp_seconds",
            "When a task last came to a good end; 0: not yet in this process.",
            ["task"],
        )
        for task in _TASKS:
            self._task_ok_at.labels(task)
            for result in ("ok", _FAILED):
                self._tasks.labels(task, result)
        self._reconciled = self._counter(
            "mpack_reconcile_blobs", "What comparing store and lease table found.", ["result"]
        )
        for result in ("listed", "adopted", "residue_deleted", "finding"):
            self._reconciled.labels(result)
        self._findings = self._gauge(
            "mpack_reconcile_findings", "Findings of the last comparison that a human should see."
        )
        self._quotas = self._counter(
            "mpack_quota_refusals", "Leases refused because a quota was reached.", ["quota"]
        )
        for quota in QUOTAS:
            self._quotas.labels(quota)
        self._log_problems = self._gauge(
            "mpack_log_problems", "Contradictions among the newest events, at the last log check."
        )

    def appended(self, types: Sequence[str]) -> None:
        """These events stand in the log now."""
        for type_, count in Tally(types).items():
            self._events.labels(type_).inc(count)
            if type_ == LeaseActivated.type:
                self._issued.inc(count)

    def reclaimed(self, trigger: Trigger, found: Sequence[tuple[Outcome, float]]) -> None:
        """Deletions were recorded."""
        for outcome, count in Tally(outcome for outcome, _lateness in found).items():
            self._deletions.labels(outcome, trigger).inc(count)
        for _outcome, lateness_seconds in found:
            self._lateness.observe(lateness_seconds)

    def not_deleted(self, trigger: Trigger, *, failed: int, handed_back: int) -> None:
        """Deletions failed, or the store was out."""
        if failed:
            self._deletions.labels(_FAILED, trigger).inc(failed)
        if handed_back:
            self._deletions.labels(_HANDED_BACK, trigger).inc(handed_back)

    def circuit_opened(self, circuit: str) -> None:
        """The store counts as out."""
        self._openings.labels(circuit).inc()

    def circuit_probed(self, circuit: str, *, ok: bool) -> None:
        """The store was asked."""
        self._probes.labels(circuit, "ok" if ok else _FAILED).inc()

    def reconciled(self, *, listed: int, adopted: int, residue_deleted: int, findings: int) -> None:
        """Store and table were compared."""
        self._reconciled.labels("listed").inc(listed)
        self._reconciled.labels("adopted").inc(adopted)
        self._reconciled.labels("residue_deleted").inc(residue_deleted)
        self._reconciled.labels("finding").inc(findings)
        self._findings.set(findings)

    def verified(self, problems: int) -> None:
        """The newest events of the log were verified."""
        self._log_problems.set(problems)

    def quota_reached(self, quota: str) -> None:
        """A lease was one too many."""
        self._quotas.labels(quota).inc()

    def task_done(self, task: str, *, ok: bool) -> None:
        """One turn of a task that runs by itself."""
        self._tasks.labels(task, "ok" if ok else _FAILED).inc()
        if ok:
            self._task_ok_at.labels(task).set(self._clock.now().timestamp())

    # Database, store, packs. ---------------------------------------------------------------------

    def _make_io_metrics(self) -> None:
        self._database = self._histogram(
            "mpack_database_seconds",
            "Single statements of the lease machinery and the look-ups, waiting included.",
            _DATABASE_SECONDS,
        )
        self._database_errors = self._counter(
            "mpack_database_errors", "Such statements that failed."
        )
        self._store = self._histogram(
            "mpack_store_seconds", "Calls of the blob store.", _STORE_SECONDS, labels=["call"]
        )
        self._store_errors = self._counter(
            "mpack_store_errors", "Calls of the blob store that failed.", ["call"]
        )
        for call in _STORE_CALLS:
            self._store.labels(call)
            self._store_errors.labels(call)
        self._built = self._histogram(
            "mpack_build_seconds", "Building a pack, from its turn until stored.", _LONG_SECONDS
        )
        self._built_bytes = self._counter("mpack_built_bytes", "Bytes of packs that were built.")
        self._served_bytes = self._counter(
            "mpack_served_bytes", "Bytes of packs that callers were given, by URL or inline."
        )
        self._slots = self._counter(
            "mpack_slot_requests", "What callers who want a pack found.", ["result"]
        )
        for answer in SlotAnswer:
            self._slots.labels(answer)

    def database_call(self, seconds: float, *, ok: bool) -> None:
        """One statement."""
        self._database.observe(seconds)
        if not ok:
            self._database_errors.inc()

    def store_call(self, call: str, seconds: float, *, ok: bool) -> None:
        """One call of the blob store."""
        self._store.labels(call).observe(seconds)
        if not ok:
            self._store_errors.labels(call).inc()

    def built(self, *, size_bytes: int, seconds: float) -> None:
        """A pack is built and, where it is kept, stored."""
        self._built.observe(seconds)
        self._built_bytes.inc(size_bytes)

    def served(self, size_bytes: int) -> None:
        """A caller was given a pack."""
        self._served_bytes.inc(size_bytes)

    def slot_asked(self, answer: SlotAnswer) -> None:
        """A caller looked for a pack to share."""
        self._slots.labels(answer).inc()

    # Requests. -----------------------------------------------------------------------------------

    def _make_request_metrics(self) -> None:
        self._requests = self._histogram(
            "mpack_request_seconds",
            "Requests, until the last byte was handed over; event streams are left out.",
            _LONG_SECONDS,
            labels=["method", "route", "status"],
        )
        self._answer_bytes = self._counter(
            "mpack_answer_bytes", "Bytes of answers' bodies.", ["route"]
        )
        self._rate_limited = self._counter(
            "mpack_requests_limited", "Requests refused because there were too many.", ["by"]
        )
        for by in ("token", "address"):
            self._rate_limited.labels(by)
        self._shed = self._counter(
            "mpack_slow_clients", "Clients cut off because they were too slow.", ["stage"]
        )
        for stage in ("head", "body", "answer"):
            self._shed.labels(stage)
        self.event_streams = self._gauge("mpack_event_streams", "Open streams of events.")

    def request_done(
        self, *, method: str, route: str, status: int, seconds: float, answer_bytes: int
    ) -> None:
        """A request was answered, or its caller hung up (status 499)."""
        method = method if method in _METHODS else "other"
        self._requests.labels(method, route, f"{status // 100}xx").observe(seconds)
        self._answer_bytes.labels(route).inc(answer_bytes)

    def rate_limited(self, by: str) -> None:
        """A request was one too many for its token or its address."""
        self._rate_limited.labels(by).inc()

    def client_shed(self, stage: str) -> None:
        """A client was too slow with its head, its body, or to read its answer."""
        self._shed.labels(stage).inc()

    def stream_done(self, *, route: str, answer_bytes: int) -> None:
        """An event stream has ended; how long it stood is nobody's latency."""
        self._answer_bytes.labels(route).inc(answer_bytes)


class _WithoutCreated(Collector):
    """A registry's families without the `_created` series, which only OpenMetrics has a use for."""

    def __init__(self, registry: Collector) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        """The families, each with what is left of it."""
        for family in self._registry.collect():
            family.samples = [one for one in family.samples if not one.name.endswith("_created")]
            yield family
