"""Which revision this code expects, and which one a database is at.

Every start asks, and every look at `/readyz`: so this does without Alembic.
"""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

HEAD = "0001"  # The newest migration; a test compares.


async def current(engine: AsyncEngine) -> str | None:
    """The revision a database is at; None before the first migration."""
    async with engine.connect() as connection:
        # A name that is not there would be an error.
        if await connection.scalar(text("SELECT to_regclass('alembic_version') IS NULL")):
            return None
        found: str | None = await connection.scalar(text("SELECT version_num FROM alembic_version"))
        return found
