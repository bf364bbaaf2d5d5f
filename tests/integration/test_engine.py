"""The lease machinery as a whole: whoever gives it up leaves nothing of it running."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from leases.clock import SystemClock
from leases.database import Database
from leases.engine import LeaseEngine
from leases.postgres_ledger import PostgresLedger, PostgresSession
from tests.fakes import ListingStore
from tests.invariants import check_invariants
from tests.leasing import QUICK, due_lease, engine_on, granted, reap


class NoSessions(PostgresLedger):
    """A way to the database on which no session ever comes about."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.asked = asyncio.Event()

    def another(self) -> NoSessions:
        return self

    @asynccontextmanager
    async def session(self) -> AsyncIterator[PostgresSession]:
        self.asked.set()
        await asyncio.Event().wait()
        async with super().session() as session:
            yield session


async def test_a_start_that_is_given_up_leaves_no_task_behind(
    database: Database, store: ListingStore
) -> None:
    """A host that bounds its start, or is stopped during it, must not go on reaping."""
    direct = NoSessions(database)
    engine = LeaseEngine(database, store, QUICK, direct=direct)
    before = asyncio.all_tasks()
    start = asyncio.ensure_future(engine.__aenter__())
    await direct.asked.wait()
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert asyncio.all_tasks() == before


async def test_leaving_waits_for_what_is_being_deleted(
    database: Database, store: ListingStore
) -> None:
    under_way = asyncio.Event()

    async def slowly(_key: str) -> None:
        under_way.set()
        await SystemClock().sleep(0.2)

    async with engine_on(database, store) as engine:
        lease = await due_lease(engine)
        store.on_delete = slowly
        reaping = asyncio.ensure_future(reap(engine))
        await under_way.wait()
    assert (await reaping).reclaimed == 1
    assert lease.storage_key not in store.blobs
    await check_invariants(database, store)


async def test_leaving_in_a_hurry_leaves_no_task_behind(
    database: Database, store: ListingStore
) -> None:
    engine = LeaseEngine(database, store, QUICK)
    under_way, never = asyncio.Event(), asyncio.Event()

    async def hang(_key: str) -> None:
        under_way.set()
        await never.wait()

    async def serve() -> None:
        async with engine:
            store.on_delete = hang
            await granted(engine, ttl_seconds=0.01)
            await under_way.wait()

    serving = asyncio.ensure_future(serve())
    await under_way.wait()
    await asyncio.wait([serving], timeout=0.05)
    serving.cancel()
    await asyncio.wait([serving], timeout=10)
    assert serving.cancelled()
    assert all(task.done() for task in engine._running)
