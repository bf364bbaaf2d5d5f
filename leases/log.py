"""The event log: append (joined with everybody else's), and read.

One task a process joins what callers want to append into one call of the database's function, as
often as the last call has come back: no timer, no waiting for company. A call is one transaction,
so the cost of a commit is shared by all that waited for it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Any, NamedTuple, cast
from uuid import UUID

import asyncpg
import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from leases.beginning import ARCHIVE_STREAM, Beginning, beginning
from leases.chain import StoredEvent
from leases.codec import JSON, SCHEMA_VERSION, dump
from leases.database import translate
from leases.errors import ClaimHeld, Conflict, DatabaseUnavailable, DeadlinePassed, VersionConflict
from leases.ids import new_event_id
from leases.ledger import Ledger, Row
from leases.observe import NOBODY, Observer
from leases.ports import Clock

# The greatest call; above it a call takes longer than its commit and only delays the others.
EVENTS_PER_CALL_MAX = 1000
# So many may wait for their turn; more means that the database does not keep up.
EVENTS_WAITING_MAX = 50_000
# Pauses before a call is sent again; event ids make that safe.
_RETRY_PAUSES_SECONDS = (0.05, 0.2, 0.5)
_STOPPING = "The gateway is stopping; try again shortly."

COLUMNS = (
    "position, event_id, stream, version, type, schema_version, data, data_sha, actor, request_id,"
    " recorded_at, hash"
)
# What the chain is computed from, in its order, and what it is compared with.
LINKS = """
SELECT position, uuid_send(event_id) AS event_id, stream, version, type, schema_version, data,
       data_sha, actor, request_id, (extract(epoch FROM recorded_at) * 1000000)::bigint AS moment,
       hash
FROM events WHERE position > $1 AND position <= $2 ORDER BY position LIMIT $3
"""
_PARAMETERS = (
    ("groups", "int[]"),
    ("streams", "text[]"),
    ("expected", "int[]"),
    ("event_ids", "uuid[]"),
    ("types", "text[]"),
    ("schema_versions", "smallint[]"),
    ("datas", "text[]"),
    ("actors", "text[]"),
    ("request_ids", "text[]"),
    ("not_afters", "timestamptz[]"),
    ("claims", "text[]"),
)
_CALL = "SELECT verdicts, positions, versions, appended_at FROM append_events({})"
APPEND = _CALL.format(", ".join(f"${place}" for place in range(1, len(_PARAMETERS) + 1)))
_APPEND_BOUND = text(
    _CALL.format(", ".join(f"CAST(:{name} AS {kind})" for name, kind in _PARAMETERS))
)

PLACES = """
SELECT e.position, e.version, e.recorded_at
FROM unnest({ids}) WITH ORDINALITY AS asked (event_id, ord) JOIN events AS e USING (event_id)
ORDER BY asked.ord
"""
_PLACES_BOUND = text(PLACES.format(ids="CAST(:ids AS uuid[])"))

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEvent:
    """A fact to be appended.

    `expected_version` is the stream's version before it (0: a new stream; None: whatever it is).
    `not_after`, `no_claim` and `claim_token` are guards, checked under the head lock.
    """

    stream: str
    type: str
    data: Mapping[str, JSON]
    expected_version: int | None
    actor: str
    request_id: str | None = None
    not_after: datetime | None = None
    no_claim: bool = False
    claim_token: UUID | None = None
    event_id: UUID = field(default_factory=new_event_id)

    @property
    def claim(self) -> str | None:
        """The claim guard as the database's function takes it."""
        if self.claim_token is not None:
            return str(self.claim_token)
        return "none" if self.no_claim else None


class Recorded(NamedTuple):
    """Where an event stands now."""

    position: int
    version: int
    recorded_at: datetime


Answer = Recorded | BaseException


@dataclass(slots=True)
class _Group:
    """What one caller appends: all of it or none, or each event for itself (`apart`)."""

    events: Sequence[NewEvent]
    done: asyncio.Future[Sequence[Answer]]
    apart: bool = False

    def units(self) -> Iterable[Sequence[NewEvent]]:
        """What the database takes or refuses as one."""
        return ([event] for event in self.events) if self.apart else (self.events,)


def stored(row: asyncpg.Record) -> StoredEvent:
    """A row of `events` as a value."""
    return StoredEvent(**dict(row))


def _arguments(groups: Iterable[Sequence[NewEvent]]) -> list[list[Any]]:
    rows = [
        (
            number,
            event.stream,
            event.expected_version,
            event.event_id,
            event.type,
            SCHEMA_VERSION,
            dump(event.data),
            event.actor,
            event.request_id,
            event.not_after,
            event.claim,
        )
        for number, events in enumerate(groups)
        for event in events
    ]
    return [list(column) for column in zip(*rows, strict=True)]


def _refusal(verdicts: Iterable[str], events: Sequence[NewEvent]) -> Conflict:
    verdict, event = next(
        (verdict, event)
        for verdict, event in zip(verdicts, events, strict=True)
        if verdict not in ("ok", "repeat", "group")
    )
    kind = {"version": VersionConflict, "deadline": DeadlinePassed, "claim": ClaimHeld}[verdict]
    return kind(stream=event.stream, type=event.type, expected_version=event.expected_version)


class EventLog:
    """The one log of a gateway.

    `run()` must be running for `append` to make progress; the owner's task group holds it.
    """

    def __init__(self, ledger: Ledger, clock: Clock, *, observer: Observer = NOBODY) -> None:
        self._ledger = ledger
        self._appender = ledger.held()
        self._observer = observer
        self._clock = clock
        self._waiting: deque[_Group] = deque()
        self._waiting_events = 0
        self._wake = asyncio.Event()
        self._ended = False
        # The newest event that the database has confirmed to this process.
        self._confirmed: tuple[int, UUID] | None = None

    async def append(self, events: Sequence[NewEvent]) -> Sequence[Recorded]:
        """Append all of them or none, in one transaction with whatever else is waiting.

        Errors: VersionConflict, DeadlinePassed, ClaimHeld; DatabaseUnavailable, after which they
        may or may not stand in the log.
        """
        return cast("Sequence[Recorded]", await self._enqueue(events))

    def _enqueue(
        self, events: Sequence[NewEvent], *, apart: bool = False
    ) -> asyncio.Future[Sequence[Answer]]:
        assert 0 < len(events) <= EVENTS_PER_CALL_MAX
        assert len({event.stream for event in events}) == len(events), "one event per stream"
        if self._waiting_events + len(events) > EVENTS_WAITING_MAX:
            raise DatabaseUnavailable("Too many events wait for the database; try again shortly.")
        if self._ended:
            raise DatabaseUnavailable(_STOPPING)
        group = _Group(events, asyncio.get_running_loop().create_future(), apart)
        self._waiting.append(group)
        self._waiting_events += len(events)
        self._wake.set()
        return group.done

    async def append_each(self, events: Sequence[NewEvent]) -> Sequence[Answer]:
        """Append each for itself: losers are answered with their exception, the rest stand."""
        if not events:
            return []
        try:
            return await self._enqueue(events, apart=True)
        except Exception as error:  # noqa: BLE001  told of each, as where only one of them fails
            return [error] * len(events)

    async def append_in(
        self, connection: AsyncConnection, events: Sequence[NewEvent]
    ) -> Sequence[Recorded]:
        """Append as the last statement of the caller's own transaction."""
        names = [name for name, _kind in _PARAMETERS]
        arguments = dict(zip(names, _arguments([events]), strict=True))
        answer = (await connection.execute(_APPEND_BOUND, arguments)).one()
        if set(answer.verdicts) == {"repeat"}:
            # The caller's transaction ran before, and the answer to its COMMIT was lost.
            ids = [event.event_id for event in events]
            places = (await connection.execute(_PLACES_BOUND, {"ids": ids})).all()
            return [Recorded(*place) for place in places]
        if set(answer.verdicts) != {"ok"}:
            raise _refusal(answer.verdicts, events)
        # The caller's COMMIT is still to come; it fails rarely enough for a count.
        self._observer.appended([event.type for event in events])
        return [
            Recorded(position, version, answer.appended_at)
            for position, version in zip(answer.positions, answer.versions, strict=True)
        ]

    async def run(self) -> None:
        """Join and append, for as long as the process lives."""
        batch: list[_Group] = []
        try:
            while True:
                await self._wake.wait()
                batch = self._take()
                if batch:
                    await self._flush(batch)
                else:
                    self._wake.clear()
        finally:
            self._ended = True
            for group in (*batch, *self._waiting):
                _fail(group, DatabaseUnavailable(_STOPPING))
            await self._appender.close()

    def _take(self) -> list[_Group]:
        """The next call's groups: in order, at most one event of a stream among them."""
        batch: list[_Group] = []
        later: list[_Group] = []
        streams: set[str] = set()
        count = 0
        while self._waiting and count < EVENTS_PER_CALL_MAX:
            group = self._waiting.popleft()
            if group.done.cancelled():
                self._waiting_events -= len(group.events)
                continue
            mine = {event.stream for event in group.events}
            fits = count + len(group.events) <= EVENTS_PER_CALL_MAX
            if fits and streams.isdisjoint(mine):
                batch.append(group)
                count += len(group.events)
            else:
                later.append(group)
            # A stream that has to wait keeps its order: its later groups wait behind it.
            streams |= mine
            if not fits:
                break
        self._waiting.extendleft(reversed(later))
        self._waiting_events -= count
        return batch

    async def _flush(self, batch: list[_Group]) -> None:
        try:
            answer = await self._call([unit for group in batch for unit in group.units()])
        except DatabaseUnavailable as failure:
            for group in batch:
                _fail(group, failure)
            return
        except Exception as error:  # noqa: BLE001  a bug in one caller's event is that caller's
            if len(batch) > 1:
                for group in batch:
                    await self._flush([group])
            elif batch[0].apart and len(batch[0].events) > 1:
                await self._flush_singly(batch[0])
            else:
                _fail(batch[0], error)
            return
        events = (event for group in batch for event in group.events)
        told = zip(events, answer["verdicts"], answer["positions"], strict=True)
        stand = [(position, event) for event, verdict, position in told if verdict == "ok"]
        self._observer.appended([event.type for _position, event in stand])
        if stand:
            self._confirmed = stand[-1][0], stand[-1][1].event_id
        moment = answer["appended_at"]
        rows = zip(answer["verdicts"], answer["positions"], answer["versions"], strict=True)
        for group in batch:
            own = list(islice(rows, len(group.events)))
            if not group.done.done():
                await self._settle(group, own, moment)

    async def _flush_singly(self, group: _Group) -> None:
        loop = asyncio.get_running_loop()
        alone = [_Group([event], loop.create_future(), apart=True) for event in group.events]
        for one in alone:
            await self._flush([one])
        answers = await asyncio.gather(*(one.done for one in alone), return_exceptions=True)
        if not group.done.done():
            group.done.set_result(
                [one if isinstance(one, BaseException) else one[0] for one in answers]
            )

    async def _call(self, groups: Sequence[Sequence[NewEvent]]) -> Row:
        arguments = _arguments(groups)
        for pause in (*_RETRY_PAUSES_SECONDS, None):
            try:
                answer = await self._appender.append(arguments)
            except DatabaseUnavailable as failure:
                if pause is None:
                    raise
                _log.warning("append_retried", **failure.fields)
                await self._clock.sleep(pause)
            else:
                return answer
        raise AssertionError

    async def _settle(
        self, group: _Group, rows: Sequence[tuple[str, int, int]], moment: datetime
    ) -> None:
        verdicts = [verdict for verdict, _, _ in rows]
        if not group.apart and not {"ok", "repeat"}.issuperset(verdicts):
            _fail(group, _refusal(verdicts, group.events))
            return
        told = list(zip(group.events, rows, strict=True))
        repeated = [event.event_id for event, (verdict, _, _) in told if verdict == "repeat"]
        try:
            # Where those stand that an earlier, unanswered call appended.
            found = await self._ledger.places(repeated) if repeated else ()
            places = dict(zip(repeated, found, strict=True))
            answers: list[Answer] = []
            for event, (verdict, position, version) in told:
                if verdict == "ok":
                    answers.append(Recorded(position, version, moment))
                elif verdict == "repeat":
                    answers.append(Recorded(*places[event.event_id]))
                else:
                    answers.append(_refusal([verdict], [event]))
            group.done.set_result(answers)
        except Exception as error:  # noqa: BLE001  it belongs to whoever waits for this group
            _fail(group, error)

    async def head(self) -> Row:
        """The head row: log_id, position, hash, recorded_at; and the database's `now`."""
        return await self._ledger.head()

    async def newest(self, stream: str) -> Row:
        """A stream's version (0: none), its last event's type, actor and data, the log's id."""
        return await self._ledger.newest(stream)

    async def beginning(self) -> Beginning:
        """Where the log in the database begins now."""
        archived = await self._ledger.newest(ARCHIVE_STREAM)
        return beginning(archived["log_id"], archived["data"])

    async def hash_at(self, position: int) -> bytes | None:
        """The hash of the event at this position; None where the database holds none."""
        found = await self._ledger.read(after=position - 1, limit=1)
        return found[0].hash if found and found[0].position == position else None

    async def lost(self) -> int | None:
        """The position of the newest event that this process appended, if it is not there any more.

        The database then lost its newest events, as a standby does that takes over too early.
        """
        if self._confirmed is None:
            return None
        position, event_id = self._confirmed
        places = await self._ledger.places([event_id])
        if places and places[0][0] == position:
            return None
        archived = position <= (await self.beginning()).position
        return None if archived else position

    def forget_confirmed(self) -> None:
        """Count on nothing any more but what is appended from now on."""
        self._confirmed = None

    async def read(self, *, after: int, limit: int) -> Sequence[StoredEvent]:
        """The feed: up to `limit` events with a position above `after`, in order, gapless."""
        return await self._ledger.read(after=after, limit=limit)

    async def links(self, *, after: int, until: int, limit: int) -> Sequence[Any]:
        """The same with `event_id` as bytes and `moment` in epoch microseconds, for the chain."""
        return await self._ledger.links(after=after, until=until, limit=limit)

    async def read_stream(
        self, stream: str, *, after_version: int = 0, limit: int = 1000
    ) -> Sequence[StoredEvent]:
        """One stream's events with a version above `after_version`, in order."""
        return await self._ledger.read(after=after_version, limit=limit, stream=stream)


def _fail(group: _Group, error: BaseException) -> None:
    if not group.done.done():
        group.done.set_exception(translate(error) or error)
