"""How things stand, for `/metrics`: what the database says of the leases, and this process's state.

The database is asked when somebody scrapes, at most every few seconds, and never waited for long:
while it is away the last answer is given again, and `mpack_stats_age_seconds` says how old it is.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Iterator, Mapping
from typing import Self

import structlog
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

import gateway
from gateway.waiting import came
from leases.circuit import Circuit
from leases.database import Database
from leases.engine import LeaseEngine
from leases.errors import Failure
from leases.ports import Clock
from leases.stats import Stats, read_stats

# Scrapes come every 15 s, from several servers perhaps; they need not each ask the database.
STATS_SECONDS = 5.0
# With very many open leases the question takes long; then it is asked rarely: a tenth of the time.
_PAUSE_PER_SECOND_ASKED = 10.0
# People on call wait for this page, too.
_SCRAPE_WAIT_SECONDS = 0.5

_log = structlog.get_logger(__name__)


class StatsCache:
    """The last `Stats`, asked for anew when wanted. An async context manager."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database.another()
        self._clock = clock
        self._wanted = asyncio.Event()
        self._answered = asyncio.Event()
        self._tasks = asyncio.TaskGroup()
        self._asking: asyncio.Task[None] | None = None
        self._asked_at = -float("inf")
        self._took = 0.0
        self._told_at = clock.monotonic()
        self.stats: Stats | None = None

    async def __aenter__(self) -> Self:
        self._tasks = await asyncio.TaskGroup().__aenter__()
        self._asking = self._tasks.create_task(self._ask_when_wanted())
        return self

    async def __aexit__(self, *_error: object) -> None:
        assert self._asking is not None
        self._asking.cancel()
        await self._tasks.__aexit__(None, None, None)
        await self._database.close()

    @property
    def age_seconds(self) -> float:
        """How old the answer is; before the first one, how long there has been none."""
        return self._clock.monotonic() - self._told_at

    async def refresh(self) -> None:
        """Ask anew where the answer is old, and wait a moment for it."""
        pause = max(STATS_SECONDS, _PAUSE_PER_SECOND_ASKED * self._took)
        if self._clock.monotonic() - self._asked_at < pause and self._answered.is_set():
            return
        self._answered.clear()
        self._wanted.set()
        # Else it goes on being asked; the next scrape has it.
        await came(self._answered, seconds_max=_SCRAPE_WAIT_SECONDS)

    async def _ask_when_wanted(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            self._asked_at = self._clock.monotonic()
            try:
                self.stats = await read_stats(self._database)
                self._told_at = self._clock.monotonic()
            except Failure as failure:
                _log.warning("stats_not_read", error=failure.code)
            self._took = self._clock.monotonic() - self._asked_at
            self._answered.set()


class StateCollector(Collector):
    """The gauges of a service that is up."""

    def __init__(
        self, engine: LeaseEngine, cache: StatsCache, circuits: Mapping[str, Circuit]
    ) -> None:
        self._engine = engine
        self._circuits = circuits
        self._cache = cache

    def describe(self) -> list[Metric]:
        """Nothing: what there is to tell depends on whether the service has been entered."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The database's numbers as they were last told, and this process's as they are."""
        yield _info()
        yield _gauge(
            "mpack_stats_age_seconds",
            "How old the database's numbers below are.",
            self._cache.age_seconds,
        )
        if self._cache.stats is not None:
            yield from _of_stats(self._cache.stats)
        yield from self._of_process()

    def _of_process(self) -> Iterator[Metric]:
        engine = self._engine
        yield from _of_circuits(self._circuits)
        yield _gauge(
            "mpack_reaping_paused",
            "1 while this process deletes nothing: paused, or the store's mark is not read yet.",
            not engine.owner.may_reap(),
        )
        yield _gauge(
            "mpack_reap_workers", "Reap workers that run in this process.", engine.workers_running
        )
        yield _gauge(
            "mpack_instance_live",
            "1 while this process holds the session lock that shows others it lives.",
            engine.instance.is_live,
        )
        yield _gauge(
            "mpack_clock_skew_seconds",
            "This process's clock minus the database's.",
            engine.database_clock.skew_seconds,
        )


def _of_circuits(circuits: Mapping[str, Circuit]) -> Iterator[Metric]:
    is_open = GaugeMetricFamily(
        "mpack_circuit_open",
        "1 while the store counts as out for this, and is only probed.",
        labels=["circuit"],
    )
    allowed = GaugeMetricFamily(
        "mpack_circuit_allowed_ratio",
        "How much of the usual may be under way: 0 while open, growing after an outage, then 1.",
        labels=["circuit"],
    )
    for name, circuit in circuits.items():
        is_open.add_metric([name], circuit.is_open)
        allowed.add_metric([name], circuit.allowed_ratio)
    yield is_open
    yield allowed


def _of_stats(stats: Stats) -> Iterator[Metric]:
    leases = GaugeMetricFamily("mpack_leases", "Open leases by state.", labels=["state"])
    for state, count in stats.by_state.items():
        leases.add_metric([state], count)
    yield leases
    for name, told, value in (
        ("mpack_leases_overdue", "Open leases past their deadline.", stats.overdue),
        (
            "mpack_leases_unattended",
            "Overdue leases that nobody works on or has put off.",
            stats.unattended,
        ),
        ("mpack_leases_stuck", "Leases whose deletion failed too often.", stats.stuck),
        ("mpack_leases_claimed", "Leases that a worker is deleting.", stats.claimed),
        (
            "mpack_overdue_seconds",
            "How long the oldest open lease is past its deadline.",
            stats.oldest_overdue_seconds,
        ),
        ("mpack_bytes_held", "Bytes of the open leases' blobs.", stats.bytes_held),
        ("mpack_log_position", "The position of the log's head.", stats.head_position),
        ("mpack_replicas", "Processes that hold their session lock.", stats.replicas),
    ):
        yield _gauge(name, told, value)


def _gauge(name: str, told: str, value: float) -> Metric:
    return GaugeMetricFamily(name, told, value=value)


def _info() -> Metric:
    info = GaugeMetricFamily(
        "mpack_build_info", "What runs here; always 1.", labels=["version", "python"]
    )
    info.add_metric([gateway.__version__, platform.python_version()], 1)
    return info
