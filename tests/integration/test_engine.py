"""The lease machinery as a whole: whoever gives it up leaves nothing of it running."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from leases.database import Database
from leases.engine import LeaseEngine
from leases.postgres_ledger import PostgresLedger, PostgresSession
from tests.fakes import ListingStore
from tests.leasing import QUICK


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
