"""Alembic's entry: on the connection that `schema.migrate` hands over, or on one of its own."""

from __future__ import annotations

import asyncio
import os

from alembic import context
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from schema.migrate import run_locked
from schema.tables import metadata


def _include(_object: object, name: str | None, kind: str, *_rest: object) -> bool:
    """The log's partitions are made by the append function; they are not in the metadata."""
    return not (kind == "table" and name is not None and name.startswith("events_p"))


def _migrate(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=metadata,
        include_object=_include,
        compare_server_default=True,
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()


async def _on_own_connection() -> None:
    url = os.environ["MPACK_DATABASE_URL"]  # noqa: TID251  Alembic's command line has no settings
    engine = create_async_engine(url, poolclass=NullPool)
    try:
        await run_locked(engine, _migrate)
    finally:
        await engine.dispose()


if context.is_offline_mode():
    context.configure(
        url="postgresql+asyncpg://",
        target_metadata=metadata,
        literal_binds=True,
        include_object=_include,
    )
    with context.begin_transaction():
        context.run_migrations()
elif (given := context.config.attributes.get("connection")) is not None:
    _migrate(given)
else:
    asyncio.run(_on_own_connection())
