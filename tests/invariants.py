"""What must hold after every integration, fault and soak run.

    await check_invariants(database, store)                      everything has come to rest
    await check_invariants(database, store, at_rest=False)       while the service still works
    before = await durable_snapshot(store)  …  durable=before    nothing durable was touched

Every failure is named after its invariant; all of them are told at once. Works on any store that
lists, and on `tests.fakes.MemoryStore`, whose record of calls also tells when deletes were sent.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, TypeAlias

import asyncpg

from leases.audit import Auditor
from leases.chain import StoredEvent
from leases.clock import SystemClock
from leases.codec import decode
from leases.database import Database
from leases.decide import evolve
from leases.lessor import LEASE_COLUMNS, lease_of
from leases.log import EventLog
from leases.model import PREFIX, Lease, LeaseState, Outcome
from leases.owner import OWNER_KEY
from leases.policy import LeasePolicy
from leases.ports import ListsBlobs
from leases.postgres_ledger import PostgresLedger
from tests.fakes import MemoryStore

Store: TypeAlias = Any  # A BlobStore of any brand; what it can tell is asked of it.
_RANKS = {LeaseState.RESERVED: 0, LeaseState.ACTIVE: 1, LeaseState.RECLAIMED: 2}
# A deletion's time comes from another clock of the same machine; reading both takes this long.
_READING = timedelta(milliseconds=1)
_PAGE = 5000


@dataclass(slots=True)
class _Life:
    """One lease as its events tell it."""

    lease: Lease
    ranks: list[int] = field(default_factory=list)
    reclaimed: int = 0
    after_end: list[str] = field(default_factory=list)
    deadlines: list[tuple[datetime, datetime]] = field(default_factory=list)

    def deadline_at(self, moment: datetime) -> datetime | None:
        """The deadline in force at this moment."""
        known = [deadline for since, deadline in self.deadlines if since <= moment]
        return known[-1] if known else None


async def check_invariants(
    database: Database,
    store: Store,
    *,
    at_rest: bool = True,
    policy: LeasePolicy | None = None,
    durable: Mapping[str, str] | None = None,
) -> None:
    """Fail with every invariant that does not hold, each by its name."""
    problems: list[str] = []
    # Blobs first, rows afterwards: a row stands before its blob.
    keys = [key async for key in _keys(store) if key.startswith(PREFIX) and key != OWNER_KEY]
    events = [event async for event in _events(database)]
    rows = {row["mpack_id"]: row for row in await database.fetch("SELECT * FROM mpack_leases")}
    lives = _fold(events)
    problems += await _deletes_in_time(database, store, lives)
    problems += _reclaimed_in_time(rows)
    if at_rest:
        problems += _blobs_are_the_open_leases(keys, rows)
        problems += await _nothing_held(database, rows)
        problems += _table_is_the_fold(rows, lives)
    problems += _reclaimed_once(lives)
    known = {row["storage_key"] for row in rows.values()}
    problems += [f"I4: {key} has no row" for key in keys if key not in known]
    if durable is not None and (changed := _changed(durable, await durable_snapshot(store))):
        problems.append(f"I6: durable blobs changed: {changed}")
    verdict = await Auditor(database, EventLog(PostgresLedger(database), SystemClock())).verify()
    problems += [f"I7: {problem}" for problem in verdict.problems]
    problems += _states_move_forward(lives)
    problems += _lives_end(lives, policy or LeasePolicy())
    problems += _gapless(events, verdict.archived_position)
    if problems:
        raise AssertionError("\n".join(problems))


async def durable_snapshot(store: Store) -> dict[str, str]:
    """The sha256 of every blob outside the transient prefix."""
    return {
        key: sha256(await store.get(key)).hexdigest()
        async for key in _keys(store)
        if not key.startswith(PREFIX)
    }


async def _keys(store: Store) -> AsyncIterator[str]:
    if isinstance(store, ListsBlobs):
        async for blob in store.list(""):
            yield blob.key
    else:
        for key in list(store.blobs):
            yield key


async def _events(database: Database) -> AsyncIterator[StoredEvent]:
    log = EventLog(PostgresLedger(database), SystemClock())
    after = 0
    while page := await log.read(after=after, limit=_PAGE):
        for event in page:
            yield event
        after = page[-1].position


def _fold(events: Sequence[StoredEvent]) -> dict[str, _Life]:
    """Every lease by the pure core; an event that it does not take is a failure of I7."""
    lives: dict[str, _Life] = {}
    for event in events:
        kind, _, mpack_id = event.stream.partition("/")
        if kind != "lease":
            continue
        fact = decode(event.type, event.schema_version, event.data)
        life = lives.get(mpack_id)
        if life is None and event.version > 1:
            continue  # Its beginning is archived; the chain says whether it may be.
        try:
            lease = evolve(life.lease if life else None, fact, mpack_id=mpack_id)
        except AssertionError as error:
            raise AssertionError(f"I7: {event.stream} cannot take {event.type}") from error
        if life is None:
            life = lives[mpack_id] = _Life(lease)
        elif life.lease.state is LeaseState.RECLAIMED:
            life.after_end.append(event.type)
        life.lease = lease
        life.ranks.append(_RANKS[lease.state])
        life.reclaimed += event.type == "lease.reclaimed"
        life.deadlines.append((event.recorded_at, lease.delete_at))
    return lives


async def _deletes_in_time(
    database: Database, store: Store, lives: Mapping[str, _Life]
) -> list[str]:
    """I1, from the store's own record of when it was called; a promise begins with activation."""
    if not isinstance(store, MemoryStore):
        return []
    before = SystemClock().monotonic()
    row = await database.row("SELECT clock_timestamp() AS now")
    by_key = {life.lease.storage_key: life for life in lives.values()}
    problems = []
    for call in store.calls_of("delete"):
        life = by_key.get(call.key)
        if life is None or life.lease.activated_at is None:
            continue
        # Read before the database was asked, so this is the latest that the call can have been.
        sent_at = row["now"] - timedelta(seconds=before - call.at) + _READING
        deadline = life.deadline_at(sent_at)
        if deadline is not None and sent_at < deadline and not _was_forgotten(life):
            problems.append(f"I1: {call.key} was deleted at {sent_at}, before {deadline}")
    return problems


def _was_forgotten(life: _Life) -> bool:
    return life.lease.outcome is Outcome.FORGOTTEN


def _reclaimed_in_time(rows: Mapping[str, asyncpg.Record]) -> list[str]:
    return [
        f"I1: lease {mpack_id} was reclaimed at {row['reclaimed_at']}, before {row['delete_at']}"
        for mpack_id, row in rows.items()
        if row["state"] == "reclaimed"
        and row["outcome"] != "forgotten"
        and row["reclaimed_at"] < row["delete_at"]
    ]


def _blobs_are_the_open_leases(
    keys: Sequence[str], rows: Mapping[str, asyncpg.Record]
) -> list[str]:
    """I2. A reservation need not have its blob yet; a forgotten lease may have left one."""
    may = {
        row["storage_key"]
        for row in rows.values()
        if row["state"] != "reclaimed" or row["outcome"] == "forgotten"
    }
    must = {row["storage_key"] for row in rows.values() if row["state"] == "active"}
    return [f"I2: {key} is there, but no open lease holds it" for key in keys if key not in may] + [
        f"I2: {key} is gone, but its lease is open" for key in sorted(must.difference(keys))
    ]


def _reclaimed_once(lives: Mapping[str, _Life]) -> list[str]:
    return [
        f"I3: lease {mpack_id} has {life.reclaimed} lease.reclaimed and is {life.lease.state}"
        for mpack_id, life in lives.items()
        if life.reclaimed != (life.lease.state is LeaseState.RECLAIMED)
    ]


def _table_is_the_fold(rows: Mapping[str, asyncpg.Record], lives: Mapping[str, _Life]) -> list[str]:
    """I7 by the Python fold; `Auditor.verify` has compared with the database's own."""
    problems = [f"I7: lease {name} has no row" for name in lives.keys() - rows.keys()]
    problems += [f"I7: lease {name} has no events" for name in rows.keys() - lives.keys()]
    for name in rows.keys() & lives.keys():
        table, fold = asdict(lease_of(rows[name])), asdict(lives[name].lease)
        problems += [
            f"I7: lease {name}: {column} is {table[column]!r} in the table and"
            f" {fold[column]!r} in the log"
            for column in (part.strip() for part in LEASE_COLUMNS.split(","))
            if table[column] != fold[column]
        ]
    return problems


def _states_move_forward(lives: Mapping[str, _Life]) -> list[str]:
    problems = [
        f"I8: lease {mpack_id} went back"
        for mpack_id, life in lives.items()
        if life.ranks != sorted(life.ranks)
    ]
    return problems + [
        f"I8: lease {mpack_id} had {type_} after its end"
        for mpack_id, life in lives.items()
        for type_ in life.after_end
        if type_ != "lease.residue_deleted"
    ]


def _lives_end(lives: Mapping[str, _Life], policy: LeasePolicy) -> list[str]:
    life_max = timedelta(seconds=policy.lease_life_max_seconds)
    return [
        f"I8: lease {mpack_id} promises more than lease_life_max"
        for mpack_id, life in lives.items()
        if life.lease.expires_at is not None
        and life.lease.expires_at - life.lease.granted_at > life_max
    ]


def _gapless(events: Sequence[StoredEvent], archived: int) -> list[str]:
    positions = [event.position for event in events]
    if positions != list(range(archived + 1, archived + len(positions) + 1)):
        return ["I7: the feed has holes"]
    return []


async def _nothing_held(database: Database, rows: Mapping[str, asyncpg.Record]) -> list[str]:
    problems = [
        f"I11: lease {mpack_id} is still claimed by {row['claimed_by']}"
        for mpack_id, row in rows.items()
        if row["claimed_by"] is not None or row["claim_token"] is not None
    ]
    idle = await database.fetch(
        "SELECT pid, query FROM pg_stat_activity WHERE datname = current_database()"
        " AND state LIKE 'idle in transaction%' AND pid <> pg_backend_pid()"
    )
    return problems + [
        f"I11: session {row['pid']} sits in a transaction: {row['query']}" for row in idle
    ]


def _changed(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Blobs that were there and are not, or differ; new ones are nobody's loss."""
    return sorted(key for key, digest in before.items() if after.get(key) != digest)
