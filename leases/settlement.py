"""Write down what became of a batch's deletions: what is gone, what failed, what is left to others.

What if we die …
- before the record of what is gone: its rows are due again, and deleting again finds nothing;
- between the facts of failures and their counts: those attempts cost nothing.

A lease whose end the database refuses to record pays with an attempt, like one whose blob cannot
be deleted. So it comes back ever more rarely, and the rest of its batch does not wait for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog

from leases.chance import chance
from leases.circuit import is_outage
from leases.claims import Claims
from leases.database_clock import DatabaseClock
from leases.decide import decide
from leases.errors import Conflict, DatabaseUnavailable, Failure
from leases.ledger import Due, FailedAttempt
from leases.lessor import Caller, new_lease_event
from leases.log import Answer, EventLog, NewEvent
from leases.model import Lease, LeaseStuck, Outcome, RecordFailure, RecordReclaim, Trigger
from leases.observe import Observer
from leases.policy import LeasePolicy
from leases.ports import DeleteOutcome
from leases.steps import Step, Steps
from leases.suspects import Suspects

# Of the leases of a sweep or a look so many are named.
NAMED_MAX = 1000
_ERROR_LENGTH_MAX = 200

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
        """Count `other` in; of the ids only the first are kept."""
        self.claimed += other.claimed
        self.reclaimed += other.reclaimed
        self.already_gone += other.already_gone
        self.failed += other.failed
        self.handed_back += other.handed_back
        self.lateness_ms_max = max(self.lateness_ms_max, other.lateness_ms_max)
        self.mpack_ids.extend(other.mpack_ids[: NAMED_MAX - len(self.mpack_ids)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A claim that is being worked off; `claimed_at` is the database's time."""

    token: UUID
    trigger: Trigger
    claimed_at: datetime
    result: SweepResult


@dataclass(slots=True)
class Ended:
    """What became of deletions; `out` is what the store, or nobody, said anything about."""

    gone: list[tuple[Due, DeleteOutcome]] = field(default_factory=list)
    failed: list[tuple[Due, BaseException]] = field(default_factory=list)
    out: list[tuple[Due, BaseException | None]] = field(default_factory=list)

    @classmethod
    def of(
        cls, claimed: Sequence[Due], found: Mapping[str, DeleteOutcome | BaseException]
    ) -> Ended:
        """By what is to be done; what was not tried is handed back with what was left open."""
        ended = cls()
        for due in claimed:
            answer = found.get(due.lease.storage_key)
            if isinstance(answer, DeleteOutcome):
                ended.gone.append((due, answer))
            elif answer is None or is_outage(answer):
                ended.out.append((due, answer))
            else:
                ended.failed.append((due, answer))
        return ended


class Settlement:
    """Records what is gone and what failed, under the batch's claim, and gives the rest back."""

    def __init__(
        self,
        *,
        claims: Claims,
        log: EventLog,
        policy: LeasePolicy,
        database_clock: DatabaseClock,
        replica: str,
        suspects: Suspects,
        steps: Steps,
        observer: Observer,
    ) -> None:
        self._claims = claims
        self._event_log = log
        self._policy = policy
        self._database_clock = database_clock
        self._replica = replica
        self._suspects = suspects
        self._step = steps
        self._observer = observer

    async def settle(self, ended: Ended, batch: Batch) -> None:
        """Effects: appends events; ends the claims on all of these.

        Errors: DatabaseUnavailable, after which some of it may stand.
        """
        # Never ahead of the database: the time of the claim, or a later estimate.
        now = max(batch.claimed_at, self._database_clock.now())
        failed = ended.failed + await self._record_gone(ended.gone, batch, now=now)
        batch.result.failed += len(failed)
        batch.result.handed_back += len(ended.out)
        self._observer.not_deleted(batch.trigger, failed=len(failed), handed_back=len(ended.out))
        if failed:
            await self._record_failed(failed, now=now, token=batch.token)
        if ended.out:
            ids = [due.lease.mpack_id for due, _error in ended.out]
            pause = self._policy.retry_first_seconds
            await self._claims.hand_back(ids, batch.token, pause_seconds=pause)
            errors = {type(error).__name__ for _due, error in ended.out if error is not None}
            _log.warning("leases_handed_back", leases=len(ids), errors=sorted(errors))

    async def _record_gone(
        self, gone: Sequence[tuple[Due, DeleteOutcome]], batch: Batch, *, now: datetime
    ) -> list[tuple[Due, BaseException]]:
        """Answers those whose end the database would not take, and why."""
        facts: list[NewEvent] = []
        for due, outcome in gone:
            command = RecordReclaim(outcome=Outcome(outcome.value), trigger=batch.trigger)
            facts += self._facts(due.lease, decide(due.lease, command, now=now), batch.token)
        if not gone:
            return []
        answers = await self._event_log.append_each(facts)
        self._step(Step.RECLAIMS_RECORDED)
        result, refused = batch.result, list[tuple[Due, BaseException]]()
        counted: list[tuple[Outcome, float]] = []
        for (due, outcome), fact, answer in zip(gone, facts, answers, strict=True):
            if isinstance(answer, Conflict):
                continue  # Somebody else recorded it: exactly one record, and it is theirs.
            if (error := _refusal(fact, answer)) is not None:
                refused.append((due, error))
                continue
            overdue_ms = lateness_ms(due.lease.delete_at, now)
            result.reclaimed += 1
            result.already_gone += outcome is DeleteOutcome.ALREADY_GONE
            result.lateness_ms_max = max(result.lateness_ms_max, overdue_ms)
            result.mpack_ids.append(due.lease.mpack_id)
            counted.append((Outcome(outcome.value), overdue_ms / 1000))
        self._observer.reclaimed(batch.trigger, counted)
        self._suspects.clear(due.lease.mpack_id for due, _outcome in gone)
        _log.info(
            "leases_reclaimed",
            leases=result.reclaimed,
            trigger=batch.trigger.value,
            lateness_ms_max=result.lateness_ms_max,
            mpack_id=result.mpack_ids[0] if len(result.mpack_ids) == 1 else None,
        )
        return refused

    def _facts(self, lease: Lease, events: Sequence[Any], token: UUID) -> list[NewEvent]:
        return [
            new_lease_event(
                lease.mpack_id,
                event,
                caller=_REAPER,
                replica=self._replica,
                expected_version=lease.version,
                claim_token=token,
            )
            for event in events
        ]

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
            facts += self._facts(due.lease, decide(due.lease, command, now=now), token)
        answers = await self._event_log.append_each(facts)
        for fact, answer in zip(facts, answers, strict=True):
            if isinstance(answer, Conflict) or _refusal(fact, answer) is not None:
                continue
            told = _log.error if fact.type == LeaseStuck.type else _log.warning
            told(fact.type.replace(".", "_"), stream=fact.stream)
        attempts = [
            FailedAttempt(
                mpack_id=due.lease.mpack_id,
                attempts=due.attempts + 1,
                error=describe(error),
                retry_seconds=retry_seconds(self._policy, due.attempts + 1),
            )
            for due, error in failed
        ]
        await self._claims.count_failures(attempts, token)
        self._step(Step.FAILURES_RECORDED)


def _refusal(fact: NewEvent, answer: Answer) -> BaseException | None:
    """Why the database answered and did not take this fact. Errors: DatabaseUnavailable."""
    if isinstance(answer, DatabaseUnavailable):
        raise answer
    if not isinstance(answer, BaseException):
        return None
    name = type(answer).__name__
    _log.error("fact_refused", stream=fact.stream, type=fact.type, error=name)
    return answer


def retry_seconds(policy: LeasePolicy, attempts: int) -> float:
    """Seconds until the next attempt: exponential, jittered, capped, never below the first."""
    exponent = min(attempts - 1, 64)
    delay = min(
        policy.retry_first_seconds * policy.retry_factor**exponent, policy.retry_cap_seconds
    )
    spread = policy.retry_jitter_ratio
    jitter = chance().uniform(1 - spread, 1 + spread)
    delay = min(delay * jitter, policy.retry_cap_seconds)
    return max(policy.retry_first_seconds, delay)


def lateness_ms(deadline: datetime, now: datetime) -> int:
    """How late it would be to have deleted now what had this deadline."""
    return max(0, (now - deadline) // timedelta(milliseconds=1))


def describe(error: BaseException) -> str:
    """An error for the log and the row: its kind, and our own words; never a store's, which may
    repeat a signed URL.
    """
    told = f": {error.message}" if isinstance(error, Failure) else ""
    return f"{type(error).__name__}{told}"[:_ERROR_LENGTH_MAX]
