"""Objects of other repos, put into the tables directly: there are no blobs behind them."""

from __future__ import annotations

import asyncpg

from benchmarks.place import Home

_PER_SEGMENT = 400
# As ids are: spread over the whole index, not one after the other.
_OBJECTS = """
CREATE TEMP TABLE made AS
SELECT encode(sha256(n::text::bytea), 'hex') AS object_id,
       encode(sha256(('commit ' || n)::bytea), 'hex') AS commit_id,
       'filled-' || n / $2::int AS segment, 'filled-' || n % 1000 AS repo_id, n % $2::int AS place
FROM generate_series(1, $1::int) AS n
"""
_ROWS = (
    """INSERT INTO segments (mpack_id, storage_key, size_bytes, sha256, state)
       SELECT DISTINCT segment, 'segments/' || segment, 3320000, repeat('0', 64), 'live' FROM made
       ON CONFLICT DO NOTHING""",
    """INSERT INTO objects (object_id, path, size_bytes, storage_uri)
       SELECT object_id, 'src/file', 8192, 'segments/' || segment FROM made""",
    """INSERT INTO mpack_index (entity_type, entity_id, mpack_id, byte_offset, byte_length)
       SELECT 'object', object_id, segment, 8300 * place, 8300 FROM made""",
    "INSERT INTO object_refs (repo_id, object_id) SELECT repo_id, object_id FROM made",
    "INSERT INTO introductions (object_id, commit_id) SELECT object_id, commit_id FROM made",
    "DROP TABLE made",
)


async def fill(home: Home, objects: int) -> None:
    """Add so many: rows, index rows, membership and introductions."""
    connection = await asyncpg.connect(home.driver_url)
    try:
        await connection.execute(_OBJECTS, objects, _PER_SEGMENT)
        for statement in _ROWS:
            await connection.execute(statement)
    finally:
        await connection.close()
