"""A transaction of the gateway's own: committed at its end, driver errors translated.

Everything is prepared before it begins: a connection that sits idle in a transaction for two
seconds is cut off (leases/database.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from leases.database import Database, translated
from leases.errors import DatabaseUnavailable

T = TypeVar("T")
# What is read with: a connection of `reading`, or the session of a host.
Reader = AsyncConnection | AsyncSession

# Deadlocks and lock timeouts pass at the second try. No pause: the losing side has waited already.
TRIES_MAX = 3


async def tried_again(work: Callable[[], Awaitable[T]]) -> T:
    """Run work that is safe to run twice; again, at most twice, when the database refuses.

    Errors: DatabaseUnavailable when the last try fails too.
    """
    for _ in range(TRIES_MAX - 1):
        try:
            return await work()
        except DatabaseUnavailable:
            continue
    return await work()


@asynccontextmanager
async def transaction(database: Database) -> AsyncIterator[AsyncConnection]:
    """One transaction; committed unless the body raises.

    Errors: DatabaseUnavailable for lost connections, deadlocks and lock timeouts. A COMMIT whose
            answer was lost raises it too: make what you do safe to do again by key.
    """
    with translated():
        async with database.engine.begin() as connection:
            yield connection


@asynccontextmanager
async def reading(database: Database) -> AsyncIterator[AsyncConnection]:
    """A connection to read with, in autocommit: it never idles in a transaction."""
    with translated():
        async with database.engine.connect() as connection:
            yield await connection.execution_options(isolation_level="AUTOCOMMIT")
