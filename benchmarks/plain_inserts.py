"""The control of whatever is appended: one row, one commit, nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import asyncpg

from benchmarks.place import Home

# As long as the facts of a lease are.
_DATA = '{"fact":"' + "x" * 300 + '"}'
_TABLE = """
CREATE TABLE IF NOT EXISTS plain_rows (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, data text NOT NULL)
"""
_INSERT = "INSERT INTO plain_rows (data) VALUES ($1)"
_INSERT_MANY = "INSERT INTO plain_rows (data) SELECT unnest($1::text[])"


class PlainInserts:
    """A connection for each caller."""

    def __init__(self, connections: list[asyncpg.Connection[asyncpg.Record]]) -> None:
        self._connections = connections

    async def insert(self, caller: int = 0) -> None:
        """Commit one row."""
        await self._connections[caller].execute(_INSERT, _DATA)

    async def insert_many(self, caller: int, rows: int) -> None:
        """Commit so many rows at once."""
        await self._connections[caller].execute(_INSERT_MANY, [_DATA] * rows)


@asynccontextmanager
async def plain_inserts(home: Home, *, callers: int) -> AsyncIterator[PlainInserts]:
    """Open so many connections for the time of the block."""
    async with AsyncExitStack() as opened:
        connections = []
        for _ in range(callers):
            connection = await asyncpg.connect(home.driver_url)
            opened.push_async_callback(connection.close)
            connections.append(connection)
        await connections[0].execute(_TABLE)
        yield PlainInserts(connections)
