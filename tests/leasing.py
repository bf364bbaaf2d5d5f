"""Lease engines and leases for tests, in a line each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from hashlib import sha256
from typing import Any, TypeAlias

import asyncpg
from sqlalchemy.ext.asyncio import create_async_engine

from leases.clock import SystemClock
from leases.database import Database
from leases.engine import LeaseEngine
from leases.ids import new_mpack_id
from leases.instance import LOCK_CLASS
from leases.lessor import Caller
from leases.log import NewEvent
from leases.model import Lease, LeaseKind, Trigger
from leases.policy import LeasePolicy
from leases.ports import BlobStore
from leases.settlement import SweepResult
from tests.databases import driver_url

CALLER = Caller(actor="test", request_id="request-1")
# No guard before expiry and no least TTL: tests live in milliseconds.
QUICK = LeasePolicy(share_guard_seconds=0, share_guard_ratio=0, look_ahead_seconds=0.1)
BLOB = b"a pack"
BLOB_SHA256 = sha256(BLOB).hexdigest()
WAIT_SECONDS = 10


@asynccontextmanager
async def engine_on(
    database: Database, store: BlobStore, policy: LeasePolicy = QUICK, **options: Any
) -> AsyncIterator[LeaseEngine]:
    """An engine that reaps when told to (`watch=False`), and whose store is its own."""
    options.setdefault("watch", False)
    async with LeaseEngine(database, store, policy, **options) as engine:
        await engine.owner.check()
        yield engine


@asynccontextmanager
async def another_database(url: str) -> AsyncIterator[Database]:
    """A second replica's pool."""
    engine = create_async_engine(url)
    database = Database(engine)
    try:
        yield database
    finally:
        await database.close()
        await engine.dispose()


@asynccontextmanager
async def connection_to(url: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """A bare connection, to hold a lock or to break something with."""
    connection = await asyncpg.connect(driver_url(url))
    try:
        yield connection
    finally:
        connection.terminate()


async def reserved(engine: LeaseEngine, *, kind: LeaseKind = LeaseKind.PACK) -> Lease:
    """A reservation without a blob."""
    return await engine.lessor.reserve(
        mpack_id=new_mpack_id(), kind=kind, repo_id="repo-1", caller=CALLER
    )


async def granted(engine: LeaseEngine, *, ttl_seconds: float = 0.05) -> Lease:
    """An active lease with its blob, known to the alarm."""
    lease = await reserved(engine)
    await engine.store.put(lease.storage_key, BLOB)
    lease = await engine.lessor.activate(
        lease.mpack_id,
        sha256=BLOB_SHA256,
        size_bytes=len(BLOB),
        ttl_seconds=ttl_seconds,
        caller=CALLER,
    )
    engine.granted(lease)
    return lease


async def granted_many(
    engine: LeaseEngine, count: int, *, ttl_seconds: float = 0.05
) -> list[Lease]:
    """Several, at once."""
    return await asyncio.gather(*(granted(engine, ttl_seconds=ttl_seconds) for _ in range(count)))


async def due(database: Database, lease: Lease) -> None:
    """Wait, in the database, until its clock has passed the lease's deadline."""
    await database.fetch(
        "SELECT pg_sleep(greatest(0, extract(epoch FROM $1 - clock_timestamp())) + 0.002)",
        lease.delete_at,
    )


async def due_lease(engine: LeaseEngine) -> Lease:
    """An active lease whose deadline has passed."""
    lease = await granted(engine)
    await due(engine.database, lease)
    return lease


async def reap(engine: LeaseEngine) -> SweepResult:
    """One batch, as when the alarm rings."""
    return await engine.reaper.reap_once(Trigger.ALARM)


async def as_owner(database: Database, *statements: str) -> None:
    """What somebody with the owner's rights could do."""
    async with database.driver() as driver:
        await driver.execute("SET session_replication_role = replica")
        for statement in statements:
            await driver.execute(statement)
        await driver.execute("RESET session_replication_role")


async def end_instance_sessions(database: Database) -> None:
    """Let every instance lose its session, as when the server goes."""
    await database.fetch(
        "SELECT pg_terminate_backend(pid) FROM pg_locks"
        f" WHERE locktype = 'advisory' AND classid = {LOCK_CLASS}"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )


async def loaded(engine: LeaseEngine, lease: Lease) -> Lease:
    """The lease as it stands now."""
    found, _now = await engine.lessor.load(lease.mpack_id)
    assert found is not None
    return found


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = WAIT_SECONDS) -> None:
    """Ask every 5 ms until it is so; fail after a while. For what runs by itself."""
    clock = SystemClock()
    async with asyncio.timeout(seconds):
        while not await condition():
            await clock.sleep(0.005)


Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


async def lock_waiters(connection: Connection, count: int) -> None:
    """Wait until so many sessions of this database wait for a lock."""
    await until_activity(connection, "wait_event_type = 'Lock'", count)


async def until_activity(connection: Connection, what: str, count: int = 1) -> None:
    """Wait until so many sessions of this database are like this in `pg_stat_activity`."""

    async def so_many() -> bool:
        # Inside a transaction the first look at the statistics is kept.
        await connection.execute("SELECT pg_stat_clear_snapshot()")
        return bool(
            await connection.fetchval(
                "SELECT count(*) >= $1 FROM pg_stat_activity"
                f" WHERE datname = current_database() AND {what}",
                count,
            )
        )

    await until(so_many)


async def until_reclaimed(engine: LeaseEngine, *leases: Lease) -> list[Lease]:
    """Wait for the cleanup of all of them; answers them as they stand then."""
    names = [lease.mpack_id for lease in leases]

    async def gone() -> bool:
        row = await engine.database.row(
            "SELECT count(*) AS open FROM mpack_leases"
            " WHERE mpack_id = ANY ($1::text[]) AND state <> 'reclaimed'",
            names,
        )
        return bool(row["open"] == 0)

    await until(gone)
    return [await loaded(engine, lease) for lease in leases]


async def work_of(database: Database, lease: Lease) -> asyncpg.Record:
    """A lease's work columns."""
    return await database.row(
        "SELECT attempts, next_attempt_at, last_error, claimed_by, claimed_until, claim_token,"
        " clock_timestamp() AS now FROM mpack_leases WHERE mpack_id = $1",
        lease.mpack_id,
    )


async def types_of(engine: LeaseEngine, lease: Lease) -> list[str]:
    """A lease's facts, in order."""
    return [event.type for event in await engine.log.read_stream(f"lease/{lease.mpack_id}")]


async def forget_attempts_pause(database: Database) -> None:
    """Make what waits for its next attempt due at once."""
    await database.execute("UPDATE mpack_leases SET next_attempt_at = NULL")


def note(stream: str, *, expected: int | None = 0, **fields: Any) -> NewEvent:
    """A fact of no consequence."""
    event = NewEvent(
        stream=stream, type="repo.noted", data={"n": 1}, expected_version=expected, actor="test"
    )
    return replace(event, **fields)
