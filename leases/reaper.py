"""Reap: claim what is due, delete it, record it. The one function behind alarm, start-up sweep,
periodic sweep and command.

What if we die …
- after the claim: it ends with our session, and somebody else reaps;
- after the deletion: the blob is gone, the row is due again, deleting again finds nothing;
- after the record: done. `lease.reclaimed` exists once, by the stream's version.

A deletion that fails as in an outage costs no attempt: a probe, the deletion of a key that no blob
ever had, says whether the store is out. Where it is, the circuit opens. Where it answers, what had
failed is tried again by itself, between two such probes: a failure then is that blob's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from uuid import UUID

import structlog

from leases.circuit import Circuit
from leases.claims import Claims
from leases.database_clock import DatabaseClock
from leases.deletions import Deletions
from leases.errors import DatabaseUnavailable
from leases.ids import new_event_id, new_mpack_id
from leases.instance import Instance
from leases.ledger import Due, Ledger
from leases.log import EventLog
from leases.model import Trigger, storage_key
from leases.observe import NOBODY, Observer
from leases.policy import LeasePolicy
from leases.ports import BlobStore, Clock
from leases.probe import Probe
from leases.settlement import NAMED_MAX, Batch, Ended, Settlement, SweepResult, lateness_ms
from leases.steps import Step, Steps
from leases.suspects import Suspects

# So long after the database failed a worker, it asks again.
_RELEASE_RETRY_SECONDS = 0.5
# Of a batch, tried each by itself: one bad blob is found soon, and a busy store is not stormed.
_ALONE_MAX = 64
_NOT_AT_ALL = timedelta()

_log = structlog.get_logger(__name__)


class Reaper:
    """Deletes due blobs and records that they are gone.

    `may_reap` is asked before every batch: nothing is deleted while it says no.
    `found_nothing` is called when a worker was woken in vain.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        log: EventLog,
        store: BlobStore,
        policy: LeasePolicy,
        clock: Clock,
        database_clock: DatabaseClock,
        instance: Instance,
        log_id: str,
        may_reap: Callable[[], bool],
        steps: Steps,
        observer: Observer = NOBODY,
    ) -> None:
        self._claims = Claims(
            ledger,
            instance,
            clock,
            database_clock=database_clock,
            limit_seconds=policy.claim_limit_seconds,
        )
        self._policy = policy
        self._clock = clock
        self._may_reap = may_reap
        self._step = steps
        self._log_id = log_id
        self._deletions = Deletions(
            store,
            batch_max=policy.reap_batch,
            timeout_seconds=policy.delete_timeout_seconds,
            monotonic=clock.monotonic,
        )
        self.circuit = Circuit(
            pause_seconds=policy.circuit_pause_seconds,
            pause_seconds_max=policy.circuit_pause_seconds_max,
            monotonic=clock.monotonic,
            width_full=self._deletions.batch_max * policy.reap_workers,
        )
        self.probe = Probe(
            "deleting",
            self.circuit,
            self._delete_nothing,
            seconds_max=min(policy.circuit_probe_seconds, policy.delete_timeout_seconds),
            observer=observer,
        )
        self._suspects = Suspects()
        self._settlement = Settlement(
            claims=self._claims,
            log=log,
            policy=policy,
            database_clock=database_clock,
            replica=instance.instance_id,
            suspects=self._suspects,
            steps=steps,
            observer=observer,
        )
        self._wakes: asyncio.Queue[Trigger] = asyncio.Queue(maxsize=policy.reap_workers)
        self._unsettled: list[UUID] = []
        self._busy = 0
        self._stopping = False
        self._idle = asyncio.Event()
        self._idle.set()
        self.found_nothing: Callable[[], None] = lambda: None

    @property
    def batch(self) -> int:
        """How many leases are claimed at once now."""
        return self._deletions.batch

    # Who calls. ----------------------------------------------------------------------------------

    def wake(self, trigger: Trigger = Trigger.ALARM) -> None:
        """Let one idle worker look; more wakes than workers are pointless and dropped."""
        if not self._wakes.full():
            self._wakes.put_nowait(trigger)

    async def run_worker(self) -> None:
        """Reap whenever woken, until nothing is due."""
        while True:
            trigger = await self._wakes.get()
            try:
                await self._release()
                if (pause := self.circuit.wait_seconds()) > 0:
                    await self._clock.sleep(pause)
                if not self._ready():
                    continue  # The look-ahead wakes again, as long as something is due.
                batch = self.batch
                result = await self.reap_once(trigger, limit=batch)
                if result.claimed == batch or (result.claimed and self.circuit.is_ramping):
                    self._go_on(trigger)
                elif not result.claimed and not self.circuit.is_open:
                    self.found_nothing()
            except Exception as error:  # noqa: BLE001  a worker outlives whatever one batch meets
                _log.warning("reap_failed", error=type(error).__name__, detail=str(error))
                if self._unsettled:
                    await self._clock.sleep(_RELEASE_RETRY_SECONDS)
                    self.wake(trigger)

    def _go_on(self, trigger: Trigger) -> None:
        """More may be due: this worker again, and an idle one; busy ones look by themselves."""
        idle = self._policy.reap_workers - self._busy
        for _ in range(min(2, idle) - self._wakes.qsize()):
            self.wake(trigger)

    async def stop(self) -> None:
        """Claim nothing more, and wait until what is claimed has been recorded or handed back."""
        self._stopping = True
        try:
            async with asyncio.timeout(self._policy.delete_timeout_seconds + 5):
                await self._idle.wait()
        except TimeoutError:
            _log.warning("reap_unfinished", batches=self._busy)

    async def sweep(self, trigger: Trigger, *, limit: int | None = None) -> SweepResult:
        """Reap until nothing is due, or `limit` leases were claimed.

        Effects: deletes blobs, appends events.
        Errors: Unavailable when the database does not answer.
        """
        if limit is not None:
            return await self._sweep_alone(trigger, limit)
        parts = await asyncio.gather(
            *(self._sweep_alone(trigger, None) for _ in range(self._policy.reap_workers)),
            return_exceptions=True,
        )
        total = SweepResult()
        for part in parts:
            if isinstance(part, BaseException):
                raise part
            total.add(part)
        return total

    async def _sweep_alone(self, trigger: Trigger, limit: int | None) -> SweepResult:
        """One batch after the other; the rows due are finite, and each is claimed by one worker."""
        total = SweepResult()
        while limit is None or total.claimed < limit:
            rest = self.batch if limit is None else min(self.batch, limit - total.claimed)
            result = await self.reap_once(trigger, limit=rest)
            total.add(result)
            if not result.claimed or result.handed_back:
                break
            if result.claimed < rest and not self.circuit.is_ramping:
                break
        return total

    async def look(
        self, *, limit: int | None = None, overdue: timedelta = _NOT_AT_ALL
    ) -> SweepResult:
        """What a sweep would claim now."""
        found = await self._claims.look(limit, overdue=overdue, named=NAMED_MAX)
        return SweepResult(
            claimed=found.count,
            lateness_ms_max=lateness_ms(found.deadline or found.now, found.now),
            mpack_ids=list(found.mpack_ids),
        )

    # One batch. ----------------------------------------------------------------------------------

    async def reap_once(
        self, trigger: Trigger, *, limit: int | None = None, overdue: timedelta = _NOT_AT_ALL
    ) -> SweepResult:
        """Claim one batch of what is overdue by so much, delete it, record it.

        Nothing is claimed while the store is out; then this probes it, when it is time for that.
        """
        if not self._ready():
            return SweepResult()
        if not await self.probe.may_go_on():
            self.wake(trigger)  # To probe again after the pause, whatever is due by then.
            return SweepResult()
        turn = self.circuit.take(limit or self.batch)
        if turn is None:
            return SweepResult()  # Others are at all that the store is trusted with so soon.
        self._busy += 1
        self._idle.clear()
        token = new_event_id()
        result = SweepResult()
        try:
            claimed = await self._claims.take(turn.count, token, overdue=overdue)
            result = await self._reap_batch(trigger, claimed, token)
        except DatabaseUnavailable:
            self._unsettled.append(token)
            self.wake(trigger)
            raise
        finally:
            self.circuit.give_back(turn, answered=result.claimed > result.handed_back)
            self._busy -= 1
            if not self._busy:
                self._idle.set()
        if self.circuit.is_open:
            self.wake(trigger)
        return result

    def _ready(self) -> bool:
        return not self._stopping and self._may_reap() and self.circuit.wait_seconds() == 0

    async def _release(self) -> None:
        """Give up the claims of batches that the database cut short: they may stand there, and
        would be in everybody's way until their limit.
        """
        if self._unsettled:
            tokens = list(self._unsettled)
            await self._claims.release(tokens)
            self._unsettled = [token for token in self._unsettled if token not in tokens]

    async def _reap_batch(
        self, trigger: Trigger, claimed: Sequence[Due], token: UUID
    ) -> SweepResult:
        result = SweepResult(claimed=len(claimed))
        if not claimed:
            return result
        batch = Batch(token=token, trigger=trigger, claimed_at=claimed[0].seen_at, result=result)
        self._step(Step.LEASES_CLAIMED)
        alone = [due for due in claimed if due.lease.mpack_id in self._suspects][:_ALONE_MAX]
        apart = {due.lease.mpack_id for due in alone}
        together = [due for due in claimed if due.lease.mpack_id not in apart]
        if together:
            await self._delete_together(together, batch)
        if alone:
            await self._delete_alone(alone, batch)
        return result

    async def _delete_together(self, claimed: Sequence[Due], batch: Batch) -> None:
        found = await self._deletions.delete([due.lease for due in claimed])
        self._step(Step.BLOBS_DELETED)
        ended = Ended.of(claimed, found)
        out, ended.out = ended.out, []
        await self._settlement.settle(ended, batch)
        if out:
            if await self.probe.answers():
                self._suspects.add(due.lease.mpack_id for due, _error in out)
            await self._settlement.settle(Ended(out=out), batch)

    async def _delete_alone(self, claimed: Sequence[Due], batch: Batch) -> None:
        """Each by itself, between two probes: if the store answers both, a failure in between is
        that blob's own, whatever it looks like, and costs an attempt.
        """
        if not await self.probe.answers():
            await self._settlement.settle(Ended(out=[(due, None) for due in claimed]), batch)
            return
        found = await self._deletions.delete_each([due.lease for due in claimed])
        self._step(Step.BLOBS_DELETED)
        ended = Ended.of(claimed, found)
        silent = [(due, error) for due, error in ended.out if error is not None]
        if silent and await self.probe.answers():
            ended.failed += silent
            ended.out = [(due, None) for due, error in ended.out if error is None]
        await self._settlement.settle(ended, batch)

    async def _delete_nothing(self) -> None:
        """The probe: a deletion like any other, of a key that no blob had and none will have."""
        await self._deletions.probe(storage_key(self._log_id, new_mpack_id(self._clock.now())))
