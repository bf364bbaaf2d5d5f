"""Looking leases up together: everybody gets their own answer, and nobody another one's failure."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from leases.database import Database
from leases.engine import LeaseEngine
from leases.errors import DatabaseUnavailable
from leases.ids import new_mpack_id
from leases.lookups import Lookups
from leases.observe import NoObserver
from leases.postgres_ledger import LEASES, PostgresLedger
from tests.fakes import ListingStore
from tests.leasing import engine_on, reserved


class Statements(NoObserver):
    """Counts statements, those that failed too."""

    def __init__(self) -> None:
        self.count = 0

    def database_call(self, seconds: float, *, ok: bool) -> None:
        self.count += 1


@pytest.fixture
async def leasing(database: Database) -> AsyncIterator[LeaseEngine]:
    async with engine_on(database, ListingStore()) as engine:
        yield engine


def running(lookups: Lookups) -> asyncio.Task[None]:
    return asyncio.ensure_future(lookups.run())


async def ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


async def test_callers_at_once_share_a_statement_and_get_their_own_lease(
    database: Database, leasing: LeaseEngine
) -> None:
    statements = Statements()
    lookups = Lookups(PostgresLedger(Database(database.engine, observer=statements)))
    leases = [await reserved(leasing) for _ in range(5)]
    ids = [leases[2].mpack_id, new_mpack_id(), *(lease.mpack_id for lease in leases)]
    asking = [asyncio.ensure_future(lookups.load(mpack_id)) for mpack_id in ids]
    await asyncio.sleep(0)
    task = running(lookups)
    found = await asyncio.gather(*asking)
    assert [lease for lease, _now in found] == [leases[2], None, *leases]
    assert all(now > leases[-1].granted_at for _lease, now in found)
    assert statements.count == 1
    await ended(task)


async def test_a_caller_who_hangs_up_costs_the_others_nothing(
    database: Database, leasing: LeaseEngine
) -> None:
    lookups = Lookups(PostgresLedger(database))
    lease = await reserved(leasing)
    gone, other = (asyncio.ensure_future(lookups.load(lease.mpack_id)) for _ in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    task = running(lookups)
    assert (await other)[0] == lease
    assert gone.cancelled()
    await ended(task)


async def test_a_question_that_cannot_be_asked_hurts_only_its_caller(
    database: Database, leasing: LeaseEngine
) -> None:
    lookups = Lookups(PostgresLedger(database))
    lease = await reserved(leasing)
    odd, other = (asyncio.ensure_future(lookups.load(one)) for one in ("\0", lease.mpack_id))
    await asyncio.sleep(0)
    task = running(lookups)
    assert (await other)[0] == lease
    with pytest.raises(asyncpg.CharacterNotInRepertoireError):
        await odd
    await ended(task)


async def test_a_lost_connection_is_an_outage_and_then_made_anew(database: Database) -> None:
    lookups = Lookups(PostgresLedger(database))
    task = running(lookups)
    await lookups.load(new_mpack_id())
    await database.fetch(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND query LIKE '%AS asked (id)%'"
        " AND pid <> pg_backend_pid()"
    )
    outcomes = [
        await asyncio.gather(lookups.load(new_mpack_id()), return_exceptions=True) for _ in range(2)
    ]
    # Whether the loss is seen before the next question or by it is a matter of moments.
    assert all(isinstance(one, tuple | DatabaseUnavailable) for (one,) in outcomes)
    assert isinstance(outcomes[-1][0], tuple)
    await ended(task)


async def test_whoever_asks_at_the_end_is_told_so(database: Database) -> None:
    lookups = Lookups(PostgresLedger(database))
    waiting = asyncio.ensure_future(lookups.load(new_mpack_id()))
    await asyncio.sleep(0)
    task = running(lookups)
    await asyncio.sleep(0)
    await ended(task)
    for late in (waiting, lookups.load(new_mpack_id())):
        with pytest.raises(DatabaseUnavailable, match="stopping"):
            await late


async def test_a_look_up_reaches_its_rows_by_their_key(database: Database) -> None:
    """Planned without statistics, as after a start, it must not read a table that has grown."""
    async with database.driver() as driver:
        await driver.execute("SET plan_cache_mode = force_generic_plan")
        await driver.execute(f"PREPARE look (text[]) AS {LEASES}")
        rows = await driver.fetch("EXPLAIN (COSTS OFF) EXECUTE look (ARRAY['a', 'b'])")
        await driver.execute("RESET plan_cache_mode; DEALLOCATE look")
    plan = "\n".join(row[0] for row in rows)
    assert "Index Scan using pk_mpack_leases" in plan, plan
    assert "Seq Scan" not in plan, plan
