"""Reap: claim what is due, delete it, record it. The one function behind alarm, start-up sweep,
periodic sweep and command.

What if we die …
- after the claim: it ends with our session, and somebody else reaps;
- after the deletion: the blob is gone, the row is due again, deleting again finds nothing;
- after the record: done. `lease.reclaimed` exists once, by the stream's version.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog

from leases.circuit import Circuit, is_outage
from leases.claims import Claims, Due, FailedAttempt
from leases.database import Database
from leases.decide import decide
from leases.deletions import Deletions
from leases.errors import Conflict, DatabaseUnavailable, Failure
from leases.ids import new_event_id
from leases.instance import Instance
from leases.lessor import Caller, new_lease_event
from leases.log import EventLog, NewEvent
from leases.model import (
    Lease,
    LeaseStuck,
    Outcome,
    RecordFailure,
    RecordReclaim,
    Trigger,
)
from leases.observe import NOBODY, Observer
from leases.policy import LeasePolicy
from leases.ports import BlobStore, Clock, DeleteOutcome
from leases.steps import Step, Steps

# So long after the database failed a worker, it asks again.
_RELEASE_RETRY_SECONDS = 0.5
# What a dry run lists at most.
_LOOKED_AT_MAX = 1_000_000
_ERROR_LENGTH_MAX = 200
_NOT_AT_ALL = timedelta()

_REAPER = Caller(actor="reaper")
_log = structlog.get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class SweepResult:
    """What a reap did; of a look, what it would claim."""

    claimed: int = 0
    reclaimed: int = 0
    already_gone: int = 0
    failed: int = 0
    handed_back: int = 0
    lateness_ms_max: int = 0
    mpack_ids: list[str] = field(default_factory=list)

    def add(self, other: SweepResult) -> None:
        """Count `other` in; of the ids only the first thousand are kept."""
        self.claimed += other.claimed
        self.reclaimed += other.reclaimed
        self.already_gone += other.already_gone
        self.failed += other.failed
        self.handed_back += other.handed_back
        self.lateness_ms_max = max(self.lateness_ms_max, other.lateness_ms_max)
        self.mpack_ids.extend(other.mpack_ids[: 1000 - len(self.mpack_ids)])


class Reaper:
    """Deletes due blobs and records that they are gone.

    `may_reap` is asked before every batch: nothing is deleted while it says no.
    `found_nothing` is called when a worker was woken in vain.
    """

    def __init__(
        self,
        *,
        database: Database,
        log: EventLog,
        store: BlobStore,
        policy: LeasePolicy,
        clock: Clock,
        instance: Instance,
        may_reap: Callable[[], bool],
        steps: Steps,
        observer: Observer = NOBODY,
    ) -> None:
        self._claims = Claims(database, instance, clock, limit_seconds=policy.claim_limit_seconds)
        self._event_log = log
        self._policy = policy
        self._clock = clock
        self._instance = instance
        self._may_reap = may_reap
        self._step = steps
        self._observer = observer
        self.circuit = Circuit(
            pause_seconds=policy.circuit_pause_seconds, monotonic=clock.monotonic
        )
        self._deletions = Deletions(
            store,
            batch_max=policy.reap_batch,
            timeout_seconds=policy.delete_timeout_seconds,
            monotonic=clock.monotonic,
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
            probing = self.circuit.is_open
            try:
                await self._release()
                if not self._ready():
                    continue  # The look-ahead wakes again, as long as something is due.
                batch = self.batch
                result = await self.reap_once(trigger, limit=batch)
                if result.claimed == batch or (probing and not self.circuit.is_open):
                    self._go_on(trigger)
                elif not result.claimed:
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
            if result.claimed < rest or result.handed_back:
                break
        return total

    async def look(
        self, *, limit: int | None = None, overdue: timedelta = _NOT_AT_ALL
    ) -> SweepResult:
        """What a sweep would claim now."""
        found = await self._claims.look(limit or _LOOKED_AT_MAX, overdue=overdue)
        return SweepResult(
            claimed=len(found),
            lateness_ms_max=max((_lateness_ms(due.lease, due.seen_at) for due in found), default=0),
            mpack_ids=[due.lease.mpack_id for due in found],
        )

    # One batch. ----------------------------------------------------------------------------------

    async def reap_once(
        self, trigger: Trigger, *, limit: int | None = None, overdue: timedelta = _NOT_AT_ALL
    ) -> SweepResult:
        """Claim one batch of what is overdue by so much, delete it, record it."""
        if not self._ready():
            return SweepResult()
        self._busy += 1
        self._idle.clear()
        token = new_event_id()
        try:
            count = 1 if self.circuit.is_open else limit or self.batch
            claimed = await self._claims.take(count, token, overdue=overdue)
            return await self._reap_batch(trigger, claimed, token)
        except DatabaseUnavailable:
            self._unsettled.append(token)
            self.wake(trigger)
            raise
        finally:
            self._busy -= 1
            if not self._busy:
                self._idle.set()

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
        if not claimed:
            return SweepResult()
        claimed_at = self._clock.monotonic()
        self._step(Step.LEASES_CLAIMED)
        found = await self._deletions.delete([due.lease for due in claimed])
        self._step(Step.BLOBS_DELETED)
        # The database's time at the claim, moved on by the time since.
        now = claimed[0].seen_at + timedelta(seconds=self._clock.monotonic() - claimed_at)
        return await self._record(claimed, found, now=now, token=token, trigger=trigger)

    async def _record(
        self,
        claimed: Sequence[Due],
        found: Mapping[str, DeleteOutcome | BaseException],
        *,
        now: datetime,
        token: UUID,
        trigger: Trigger,
    ) -> SweepResult:
        gone: list[tuple[Lease, DeleteOutcome]] = []
        failed: list[tuple[Due, BaseException]] = []
        out: list[tuple[Due, BaseException]] = []
        for due in claimed:
            answer = found[due.lease.storage_key]
            if isinstance(answer, DeleteOutcome):
                gone.append((due.lease, answer))
            elif is_outage(answer):
                out.append((due, answer))
            else:
                failed.append((due, answer))
        self._judge_store(gone, failed, out)
        self._observer.not_deleted(trigger, failed=len(failed), handed_back=len(out))
        result = SweepResult(claimed=len(claimed), failed=len(failed), handed_back=len(out))
        await self._record_gone(gone, result, now=now, token=token, trigger=trigger)
        if failed:
            await self._record_failed(failed, now=now, token=token)
        if out:
            ids = [due.lease.mpack_id for due, _error in out]
            pause = self._policy.retry_first_seconds
            await self._claims.hand_back(ids, token, pause_seconds=pause)
        return result

    def _judge_store(
        self, gone: Sequence[object], failed: Sequence[object], out: Sequence[tuple[Due, Any]]
    ) -> None:
        if gone or failed:
            self.circuit.closed()
        if out:
            self.circuit.opened()
            _log.warning("store_out", leases=len(out), error=type(out[0][1]).__name__)

    async def _record_gone(
        self,
        gone: Sequence[tuple[Lease, DeleteOutcome]],
        result: SweepResult,
        *,
        now: datetime,
        token: UUID,
        trigger: Trigger,
    ) -> None:
        facts: list[NewEvent] = []
        for lease, outcome in gone:
            command = RecordReclaim(outcome=Outcome(outcome.value), trigger=trigger)
            facts += [self._fact(lease, e, token) for e in decide(lease, command, now=now)]
        if not facts:
            return
        answers = await self._event_log.append_each(facts)
        self._step(Step.RECLAIMS_RECORDED)
        counted: list[tuple[Outcome, float]] = []
        for (lease, outcome), answer in zip(gone, answers, strict=True):
            if isinstance(answer, Conflict):
                continue  # Somebody else recorded it: exactly one record, and it is theirs.
            if isinstance(answer, BaseException):
                raise answer
            lateness_ms = _lateness_ms(lease, now)
            result.reclaimed += 1
            result.already_gone += outcome is DeleteOutcome.ALREADY_GONE
            result.lateness_ms_max = max(result.lateness_ms_max, lateness_ms)
            result.mpack_ids.append(lease.mpack_id)
            counted.append((Outcome(outcome.value), lateness_ms / 1000))
        self._observer.reclaimed(trigger, counted)
        _log.info(
            "leases_reclaimed",
            leases=result.reclaimed,
            trigger=trigger.value,
            lateness_ms_max=result.lateness_ms_max,
            mpack_id=result.mpack_ids[0] if len(result.mpack_ids) == 1 else None,
        )

    def _fact(self, lease: Lease, event: Any, token: UUID) -> NewEvent:
        return new_lease_event(
            lease.mpack_id,
            event,
            caller=_REAPER,
            replica=self._instance.instance_id,
            expected_version=lease.version,
            claim_token=token,
        )

    async def _record_failed(
        self, failed: Sequence[tuple[Due, BaseException]], *, now: datetime, token: UUID
    ) -> None:
        """Count each attempt in the row; the first one, and becoming stuck, are facts as well."""
        noted = await self._claims.failed_before([due.lease for due, _error in failed])
        facts: list[NewEvent] = []
        for due, error in failed:
            command = RecordFailure(
                error=describe(error),
                attempts=due.attempts + 1,
                noted_before=due.lease.mpack_id in noted,
                stuck_after_attempts=self._policy.stuck_after_attempts,
            )
            facts += [self._fact(due.lease, e, token) for e in decide(due.lease, command, now=now)]
        answers = await self._event_log.append_each(facts) if facts else []
        for fact, answer in zip(facts, answers, strict=True):
            if isinstance(answer, Conflict):
                continue
            if isinstance(answer, BaseException):
                raise answer
            told = _log.error if fact.type == LeaseStuck.type else _log.warning
            told(fact.type.replace(".", "_"), stream=fact.stream)
        attempts = [
            FailedAttempt(
                mpack_id=due.lease.mpack_id,
                attempts=due.attempts + 1,
                error=describe(error),
                retry_seconds=self._retry_delay(due.attempts + 1),
            )
            for due, error in failed
        ]
        await self._claims.count_failures(attempts, token)
        self._step(Step.FAILURES_RECORDED)

    def _retry_delay(self, attempts: int) -> float:
        """Seconds until the next attempt: exponential, jittered, capped, never below the first."""
        policy = self._policy
        exponent = min(attempts - 1, 64)
        delay = min(
            policy.retry_first_seconds * policy.retry_factor**exponent, policy.retry_cap_seconds
        )
        spread = policy.retry_jitter_ratio
        jitter = random.uniform(1 - spread, 1 + spread)  # noqa: S311  spreads load, guards nothing
        delay = min(delay * jitter, policy.retry_cap_seconds)
        return max(policy.retry_first_seconds, delay)


def _lateness_ms(lease: Lease, now: datetime) -> int:
    return max(0, (now - lease.delete_at) // timedelta(milliseconds=1))


def describe(error: BaseException) -> str:
    """An error for the log and the row: its kind, and our own words; never a store's, which may
    repeat a signed URL.
    """
    told = f": {error.message}" if isinstance(error, Failure) else ""
    return f"{type(error).__name__}{told}"[:_ERROR_LENGTH_MAX]
