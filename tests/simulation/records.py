"""The database's tables and functions in memory: what one atomic step each does to them.

Time comes from whoever makes it. Nothing here waits, fails or is random; that is the wire's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any
from uuid import UUID

from leases.chain import StoredEvent, event_hash, genesis, microseconds
from leases.codec import decode
from leases.decide import evolve
from leases.ledger import Claimed, DueNow, FailedAttempt, Look
from leases.model import Lease, LeaseState

_BEGINNINGS = ("lease.reserved", "lease.adopted")


@dataclass(slots=True)
class WorkRow:
    """A row of `mpack_leases`: the fold of its events, and the reaper's notes."""

    lease: Lease
    attempts: int = 0
    next_attempt_at: datetime | None = None
    last_error: str | None = None
    claimed_by: str | None = None
    claimed_until: datetime | None = None
    claim_token: UUID | None = None

    @property
    def due(self) -> datetime:
        """GREATEST, which takes no notice of nulls."""
        moments = (self.lease.delete_at, self.next_attempt_at, self.claimed_until)
        return max(moment for moment in moments if moment is not None)

    def free(self) -> None:
        """Nobody claims it."""
        self.claimed_by = self.claimed_until = self.claim_token = None


@dataclass(frozen=True, slots=True)
class _Asked:
    """One event of a call, with the columns of `append_events`."""

    group: int
    stream: str
    expected: int | None
    event_id: UUID
    type: str
    schema_version: int
    data: str
    actor: str
    request_id: str | None
    not_after: datetime | None
    claim: str | None

    @property
    def mpack_id(self) -> str:
        return self.stream[len("lease/") :]


@dataclass(slots=True)
class Records:
    """Everything that is committed. `appended` hears of every event that is."""

    clock: Callable[[], datetime]
    log_id: UUID
    events: list[StoredEvent] = field(default_factory=list)
    streams: dict[str, list[StoredEvent]] = field(default_factory=dict)
    by_id: dict[UUID, StoredEvent] = field(default_factory=dict)
    rows: dict[str, WorkRow] = field(default_factory=dict)
    locks: dict[int, object] = field(default_factory=dict)
    appended: Callable[[StoredEvent], None] = lambda _event: None
    # Rows that are not reclaimed: what the partial indexes hold.
    _open: dict[str, WorkRow] = field(default_factory=dict)

    # The log. ------------------------------------------------------------------------------------

    def head(self) -> dict[str, Any]:
        last = self.events[-1] if self.events else None
        return {
            "log_id": self.log_id,
            "position": last.position if last else 0,
            "hash": last.hash if last else genesis(self.log_id),
            "recorded_at": last.recorded_at if last else None,
            "now": self.clock(),
        }

    def append(self, columns: Sequence[Sequence[Any]]) -> dict[str, Any]:
        asked = [_Asked(*row) for row in zip(*columns, strict=True)]
        moment = self.clock()
        if self.events:
            moment = max(moment, self.events[-1].recorded_at)
        verdicts = [self._verdict(one, moment) for one in asked]
        refused = {one.group for one, told in zip(asked, verdicts, strict=True) if told != "ok"}
        places: list[StoredEvent | None] = []
        for number, one in enumerate(asked):
            if verdicts[number] == "ok" and one.group in refused:
                verdicts[number] = "group"
        taken = [one.stream for one, told in zip(asked, verdicts, strict=True) if told == "ok"]
        if len(set(taken)) < len(taken):
            raise ValueError("two events would be duplicates in one stream")
        for number, one in enumerate(asked):
            places.append(self._insert(one, moment) if verdicts[number] == "ok" else None)
        return {
            "verdicts": verdicts,
            "positions": [place and place.position for place in places],
            "versions": [place and place.version for place in places],
            "appended_at": moment if any(places) else None,
        }

    def _verdict(self, one: _Asked, moment: datetime) -> str:
        version = len(self.streams.get(one.stream, ()))
        if one.expected is None:
            if one.event_id in self.by_id:
                return "repeat"
        elif one.expected != version:
            there = self.streams.get(one.stream, ())[one.expected : one.expected + 1]
            return "repeat" if there and there[0].event_id == one.event_id else "version"
        if one.not_after is not None and one.not_after < moment:
            return "deadline"
        row = self.rows.get(one.mpack_id)
        if one.claim == "none":
            held = row is not None and row.claimed_until is not None
            if held and row is not None and row.claimed_until and row.claimed_until > moment:
                return "claim"
        elif one.claim is not None and (row is None or row.claim_token != UUID(one.claim)):
            return "claim"
        return "ok"

    def _insert(self, one: _Asked, moment: datetime) -> StoredEvent:
        head = self.head()
        stream = self.streams.setdefault(one.stream, [])
        event = StoredEvent(
            position=head["position"] + 1,
            event_id=one.event_id,
            stream=one.stream,
            version=len(stream) + 1,
            type=one.type,
            schema_version=one.schema_version,
            data=one.data,
            data_sha=sha256(one.data.encode()).digest(),
            actor=one.actor,
            request_id=one.request_id,
            recorded_at=moment,
            hash=b"",
        )
        object.__setattr__(event, "hash", event_hash(head["hash"], event))
        self.events.append(event)
        stream.append(event)
        self.by_id[event.event_id] = event
        if one.stream.startswith("lease/"):
            self._fold(one, event)
        self.appended(event)
        return event

    def _fold(self, one: _Asked, event: StoredEvent) -> None:
        fact = decode(event.type, event.schema_version, event.data)
        row = self.rows.get(one.mpack_id)
        if event.type in _BEGINNINGS:
            assert row is None
            lease = evolve(None, fact, mpack_id=one.mpack_id)
            self.rows[one.mpack_id] = self._open[one.mpack_id] = WorkRow(lease)
        elif row is not None:
            row.lease = evolve(row.lease, fact, mpack_id=one.mpack_id)
            if row.lease.state is LeaseState.RECLAIMED:
                self._open.pop(one.mpack_id, None)
                row.free()

    def places(self, event_ids: Iterable[UUID]) -> list[tuple[int, int, datetime]]:
        found = (self.by_id.get(event_id) for event_id in event_ids)
        return [(one.position, one.version, one.recorded_at) for one in found if one]

    def read(self, after: int, limit: int, stream: str | None) -> list[StoredEvent]:
        return (self.events if stream is None else self.streams.get(stream, []))[
            after : after + limit
        ]

    def links(self, after: int, until: int, limit: int) -> list[tuple[Any, ...]]:
        return [
            (
                *(event.position, event.event_id.bytes, event.stream, event.version, event.type),
                *(event.schema_version, event.data, event.data_sha, event.actor),
                *(event.request_id, microseconds(event.recorded_at), event.hash),
            )
            for event in self.events[after : min(until, after + limit)]
        ]

    def newest(self, stream: str) -> dict[str, Any]:
        events = self.streams.get(stream)
        last = events[-1] if events else None
        return {
            "log_id": self.log_id,
            "version": last.version if last else 0,
            "type": last and last.type,
            "actor": last and last.actor,
            "data": last and last.data,
        }

    def streams_with(self, streams: Iterable[str], type_: str | None) -> set[str]:
        return {
            stream
            for stream in streams
            if stream in self.streams
            and (type_ is None or any(event.type == type_ for event in self.streams[stream]))
        }

    # Leases. -------------------------------------------------------------------------------------

    def leases(self, mpack_ids: Iterable[str]) -> tuple[dict[str, Lease], datetime]:
        found = {name: self.rows[name].lease for name in mpack_ids if name in self.rows}
        return found, self.clock()

    def active(self, before: datetime, after: str, limit: int) -> list[tuple[str, str]]:
        found = [
            (name, row.lease.storage_key)
            for name, row in self._open.items()
            if row.lease.state is LeaseState.ACTIVE
            and row.lease.activated_at is not None
            and row.lease.activated_at < before
            and name > after
        ]
        return sorted(found)[:limit]

    def attempts(self, mpack_id: str) -> int:
        return self.rows[mpack_id].attempts if mpack_id in self.rows else 0

    def forget_attempts(self, mpack_id: str) -> None:
        row = self.rows.get(mpack_id)
        if row is not None and row.claim_token is None:
            row.attempts, row.next_attempt_at = 0, None

    # Claims. -------------------------------------------------------------------------------------

    @property
    def live(self) -> set[str]:
        """The names under which living instances claim."""
        return {f"live.{key & 0xFFFFFFFF:08x}" for key in self.locks}

    def _due(self, count: int | None, now: datetime, overdue: timedelta) -> list[WorkRow]:
        found = [
            row
            for row in self._open.values()
            if row.lease.delete_at <= now - overdue and row.due <= now
        ]
        return sorted(found, key=lambda row: row.due)[:count]

    def claim(
        self, count: int, name: str, *, limit: timedelta, token: UUID, overdue: timedelta
    ) -> tuple[int, datetime]:
        now = self.clock()
        found = self._due(count, now, overdue)
        for row in found:
            row.claimed_by, row.claimed_until, row.claim_token = name, now + limit, token
        return len(found), now

    def claimed(self, name: str, token: UUID) -> list[Claimed]:
        return [
            Claimed(row.lease, row.attempts)
            for row in self._open.values()
            if row.claim_token == token and row.claimed_by == name
        ]

    def _held(self, mpack_ids: Iterable[str], token: UUID) -> Iterator[WorkRow]:
        for name in mpack_ids:
            row = self.rows.get(name)
            if row is not None and row.claim_token == token:
                yield row

    def give_back(self, mpack_ids: Iterable[str], token: UUID, pause_seconds: float) -> None:
        for row in self._held(mpack_ids, token):
            row.free()
            row.next_attempt_at = self.clock() + timedelta(seconds=pause_seconds)

    def count_failures(self, failures: Iterable[FailedAttempt], token: UUID) -> None:
        for failure in failures:
            for row in self._held([failure.mpack_id], token):
                row.free()
                row.attempts, row.last_error = failure.attempts, failure.error
                row.next_attempt_at = self.clock() + timedelta(seconds=failure.retry_seconds)

    def release(self, names: Sequence[str], tokens: Sequence[UUID]) -> None:
        for row in self._open.values():
            if row.claimed_by in names and row.claim_token in tokens:
                row.free()

    def due_now(self, count: int | None, overdue: timedelta, named: int) -> DueNow:
        now = self.clock()
        leases = [row.lease for row in self._due(count, now, overdue)]
        return DueNow(
            count=len(leases),
            now=now,
            deadline=min((lease.delete_at for lease in leases), default=None),
            mpack_ids=[lease.mpack_id for lease in leases[:named]],
        )

    def _dead_claims(self) -> list[WorkRow]:
        live = self.live
        return [
            row
            for row in self._open.values()
            if row.claimed_by is not None
            and row.claimed_by.startswith("live.")
            and row.claimed_by not in live
        ]

    def look_ahead(self) -> Look:
        due = min((row.due for row in self._open.values()), default=None)
        return Look(self.clock(), due, len(self.locks), bool(self._dead_claims()))

    def free_dead_claims(self) -> int:
        dead = self._dead_claims()
        for row in dead:
            row.free()
        return len(dead)
