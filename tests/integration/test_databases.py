"""The fixtures keep what they promise: every test finds a migrated database of its own."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from leases.database import Database


@pytest.mark.parametrize("turn", [1, 2])
async def test_each_test_has_a_fresh_migrated_database(engine: AsyncEngine, turn: int) -> None:
    async with engine.begin() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM mpack_leases")) == 0
        await connection.execute(text("CREATE TABLE left_behind ()"))


async def test_the_pool_of_ours_reads_the_same_database(
    database: Database, engine: AsyncEngine
) -> None:
    async with engine.connect() as connection:
        name = await connection.scalar(text("SELECT current_database()"))
    row = await database.row("SELECT current_database() AS name")
    assert row["name"] == name


async def test_users_of_a_held_connection_take_turns(database: Database) -> None:
    held = database.held()
    asked = (held.fetchrow("SELECT pg_backend_pid() AS pid") for _ in range(20))
    rows = await asyncio.gather(*asked)
    assert len({row["pid"] for row in rows if row is not None}) == 1
    await held.close()


async def test_who_hangs_up_on_a_held_connection_spoils_nobody_elses_turn(
    database: Database,
) -> None:
    held = database.held()
    await held.fetch("SELECT 1")  # The driver leaves a socket behind that is not yet connected.
    endless = asyncio.ensure_future(held.fetch("SELECT pg_sleep(3600)"))
    waiting = [asyncio.ensure_future(held.fetch("SELECT 1")) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    endless.cancel()
    await asyncio.wait([endless, waiting[0]])
    assert [len(await one) for one in waiting[1:]] == [1, 1]
    await held.close()
