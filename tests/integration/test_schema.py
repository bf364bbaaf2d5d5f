"""The migrations: up, down and up again, and what they leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import inspect, text
from sqlalchemy.ext.asyncio import AsyncEngine

from leases.clock import SystemClock
from leases.database import Database
from leases.log import EventLog
from leases.postgres_ledger import PostgresLedger
from schema import migrate, revision
from schema.tables import metadata
from tests.leasing import note

OBJECTS = """
SELECT kind || ' ' || name FROM (
    SELECT 'relation', relname FROM pg_class WHERE relnamespace = 'public'::regnamespace
    UNION ALL SELECT 'function', proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace
    UNION ALL SELECT 'trigger', tgname FROM pg_trigger WHERE NOT tgisinternal
    UNION ALL SELECT 'constraint', conname FROM pg_constraint
    WHERE connamespace = 'public'::regnamespace
) AS found (kind, name) ORDER BY 1
"""


async def objects(engine: AsyncEngine) -> list[str]:
    async with engine.connect() as connection:
        return list((await connection.execute(text(OBJECTS))).scalars())


@pytest.fixture
async def log(engine: AsyncEngine) -> AsyncIterator[EventLog]:
    database = Database(engine)
    log = EventLog(PostgresLedger(database), SystemClock())
    task = asyncio.ensure_future(log.run())
    yield log
    task.cancel()
    await asyncio.wait([task])
    await database.close()


async def test_up_down_and_up_again_comes_to_the_same(engine: AsyncEngine) -> None:
    before = await objects(engine)
    await migrate.downgrade(engine, "base")
    assert [name for name in await objects(engine) if "alembic" not in name] == []
    assert await revision.current(engine) is None
    await migrate.upgrade(engine)
    assert await objects(engine) == before
    assert await revision.current(engine) == revision.HEAD


async def test_a_log_with_events_can_be_taken_down(engine: AsyncEngine, log: EventLog) -> None:
    await log.append([note("repo/1")])
    await migrate.downgrade(engine, "base")
    await migrate.upgrade(engine)


async def test_upgrading_again_changes_nothing(engine: AsyncEngine, log: EventLog) -> None:
    await log.append([note("repo/1")])
    await migrate.upgrade(engine)
    assert len(await log.read(after=0, limit=10)) == 1


async def test_migrators_take_turns(engine: AsyncEngine) -> None:
    await migrate.downgrade(engine, "base")
    await asyncio.gather(*(migrate.upgrade(engine) for _ in range(3)))
    assert await revision.current(engine) == revision.HEAD


async def test_tables_and_migrations_agree(engine: AsyncEngine) -> None:
    await migrate.check(engine)


async def test_the_check_sees_a_drift(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE repos ADD COLUMN more text"))
    with pytest.raises(CommandError):
        await migrate.check(engine)


def test_there_is_one_head_and_the_code_expects_it() -> None:
    scripts = ScriptDirectory.from_config(migrate._config())
    assert scripts.get_heads() == [revision.HEAD]


def test_every_constraint_has_a_name() -> None:
    unnamed = [
        f"{table.name}: {constraint}"
        for table in metadata.tables.values()
        for constraint in table.constraints
        if constraint.name is None
    ]
    assert unnamed == []


async def test_every_constraint_of_the_database_has_its_conventional_name(
    engine: AsyncEngine,
) -> None:
    """A violation is told apart by its constraint's name."""
    async with engine.connect() as connection:
        names = (
            await connection.execute(
                text(
                    "SELECT conname FROM pg_constraint AS c"
                    " JOIN pg_class AS t ON t.oid = c.conrelid"
                    " WHERE t.relnamespace = 'public'::regnamespace AND c.contype <> 'n'"
                    " AND t.relname NOT LIKE 'events_p%' AND t.relname <> 'alembic_version'"
                )
            )
        ).scalars()
        assert [n for n in names if not n.startswith(("pk_", "uq_", "ck_", "ix_"))] == []


async def test_tables_are_those_of_the_contract(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        names = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
    assert {n for n in names if not n.startswith("events_p")} - {"alembic_version"} == set(
        metadata.tables
    )


async def test_a_lease_cannot_name_a_key_outside_the_prefix(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        with pytest.raises(Exception, match="ck_mpack_leases_transient_only"):
            await connection.execute(
                text(
                    "INSERT INTO mpack_leases (mpack_id, kind, repo_id, storage_key, state,"
                    " granted_at, delete_at, version, last_position)"
                    " VALUES ('x', 'pack', '', 'segments/x', 'active', now(), now(), 1, 1)"
                )
            )


async def test_the_log_works_in_a_schema_of_another_name(engine: AsyncEngine) -> None:
    """A host may keep its tables beside ours."""
    async with engine.begin() as connection:
        await connection.execute(text('CREATE SCHEMA "mpack gateway"'))
        name = (await connection.execute(text("SELECT current_database()"))).scalar_one()
        await connection.execute(text(f'ALTER DATABASE {name} SET search_path = "mpack gateway"'))
    await engine.dispose()
    await migrate.upgrade(engine)
    database = Database(engine)
    log = EventLog(PostgresLedger(database), SystemClock())
    task = asyncio.ensure_future(log.run())
    (recorded,) = await log.append([note("repo/1")])
    task.cancel()
    await asyncio.wait([task])
    await database.close()
    assert recorded.position == 1
    async with engine.connect() as connection:
        place = await connection.scalar(text("SELECT 'events'::regclass::oid::regclass::text"))
        count = await connection.scalar(text("SELECT count(*) FROM public.events"))
    assert (place, count) == ("events", 0)
