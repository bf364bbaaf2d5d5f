"""Bring a database to the schema that this code expects, one migrator at a time."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import TypeVar

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

# Any constant will do, as long as every release uses the same one.
_MIGRATION_LOCK = 0x6D7061636B
_LOCK_WAIT = "60s"
_STATEMENT_LIMIT = "15min"

Result = TypeVar("Result")


def _config(connection: Connection | None = None) -> Config:
    config = Config(stdout=StringIO())  # What it says is not for the stdout of our callers.
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


async def run_locked(engine: AsyncEngine, work: Callable[[Connection], Result]) -> Result:
    """Run `work` while no other migrator does; waits a minute for its turn."""
    async with engine.connect() as connection:
        await connection.execute(text(f"SET lock_timeout = '{_LOCK_WAIT}'"))
        await connection.execute(text(f"SET statement_timeout = '{_STATEMENT_LIMIT}'"))
        await connection.execute(text(f"SELECT pg_advisory_lock({_MIGRATION_LOCK})"))
        await connection.commit()
        try:
            result = await connection.run_sync(work)
            await connection.commit()
            return result
        finally:
            # The connection goes for good: its lock and its settings go with it.
            await connection.invalidate()


async def upgrade(engine: AsyncEngine, revision: str = "head") -> None:
    """Migrate up to `revision`; doing it again changes nothing."""
    await run_locked(engine, lambda connection: command.upgrade(_config(connection), revision))


async def downgrade(engine: AsyncEngine, revision: str) -> None:
    """Migrate down to `revision` (`base` empties the database)."""
    await run_locked(engine, lambda connection: command.downgrade(_config(connection), revision))


async def check(engine: AsyncEngine) -> None:
    """Raise `alembic.util.CommandError` where tables and migrations have drifted apart."""
    await run_locked(engine, lambda connection: command.check(_config(connection)))


def statements(start: str | None = None) -> str:
    """The migrations behind `start` (None: all of them) as SQL, for the schema public.

    Errors: LookupError for a revision that is none.
    """
    config = _config()
    config.output_buffer = StringIO()
    try:
        command.upgrade(config, f"{start}:head" if start else "head", sql=True)
    except CommandError as error:
        raise LookupError(str(error)) from error
    return config.output_buffer.getvalue()
