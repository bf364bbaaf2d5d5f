"""The fixtures keep what they promise: every test finds a migrated database of its own."""

from __future__ import annotations

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
    row = await database.fetchrow("SELECT current_database() AS name")
    assert row is not None
    assert row["name"] == name
