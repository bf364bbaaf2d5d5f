"""Leases that are not yet due, put into the tables directly: they are not in the log."""

from __future__ import annotations

import asyncpg

from benchmarks.place import Home

_LEASES = """
INSERT INTO mpack_leases (mpack_id, kind, repo_id, storage_key, state, sha256, size_bytes,
                          granted_at, activated_at, expires_at, delete_at, version, last_position)
SELECT made.id, 'pack', 'repo-' || n % 1000, 'transient/' || log_id || '/' || made.id, 'active',
       repeat('0', 64), 1, now(), now(), now() + life, now() + life, 2, 1
FROM (SELECT n, '0190' || lpad(to_hex(n), 8, '0') || '70008' || substr(md5(n::text), 1, 15) AS id,
             CASE WHEN n > $2 THEN interval '1 day' ELSE interval '-1 day' END
                 + n * interval '0.08 seconds' AS life
      FROM generate_series(1, $1::int + $2::int) AS n) AS made, event_head
"""
_STREAMS = """
INSERT INTO event_streams (stream, version, last_position)
SELECT 'lease/' || mpack_id, 2, 1 FROM mpack_leases
"""
_OVERDUE = "SELECT storage_key FROM mpack_leases WHERE delete_at <= now() ORDER BY delete_at"


async def fill(home: Home, leases: int, *, overdue: int = 0) -> list[str]:
    """Add so many open leases, the first due in a day, and let the server settle.

    With `overdue` as many more, due since yesterday; answers their keys, the first due first.
    """
    connection = await asyncpg.connect(home.driver_url)
    try:
        await connection.execute(_LEASES, leases, overdue)
        await connection.execute(_STREAMS)
        for statement in ("VACUUM ANALYZE", "CHECKPOINT"):
            await connection.execute(statement)
        rows = await connection.fetch(_OVERDUE)
    finally:
        await connection.close()
    return [row[0] for row in rows]
