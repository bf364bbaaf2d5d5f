"""The plans of `gc` at some size: each table is gone through once, or asked by its index."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import TextClause, text

from gateway.packs import garbage_rows, joining_rows
from gateway.packs.garbage_rows import Kind
from gateway.packs.transaction import transaction
from leases.database import Database

_OBJECTS = 50_000
_FILL = (
    """CREATE TEMP TABLE made AS
       SELECT encode(sha256(n::text::bytea), 'hex') AS object_id,
              encode(sha256(('commit ' || n)::bytea), 'hex') AS commit_id, 's' || n / 10 AS segment
       FROM generate_series(1, :objects) AS n""",
    """INSERT INTO segments (mpack_id, storage_key, size_bytes, state)
       SELECT DISTINCT segment, 'segments/' || segment, 99, 'live' FROM made""",
    """INSERT INTO objects (object_id, size_bytes, storage_uri)
       SELECT object_id, 9, 'segments/' || segment FROM made""",
    """INSERT INTO mpack_index SELECT 'object', object_id, segment, 0, 9 FROM made""",
    """INSERT INTO object_refs SELECT 'r', object_id FROM made WHERE right(object_id, 1) <> '0'""",
    """INSERT INTO commits (commit_id, branch, message, author, timestamp, record)
       SELECT commit_id, 'main', '', '', now(), '' FROM made""",
    """INSERT INTO commit_refs SELECT 'r', commit_id FROM made WHERE right(commit_id, 1) <> '0'""",
    """INSERT INTO introductions (object_id, commit_id)
       SELECT object_id, commit_id FROM made WHERE right(object_id, 1) <> '0'""",
    "DROP TABLE made",
)
_AGES = {"age": timedelta(days=1), "kept": timedelta(days=7)}
_ASKED: dict[str, tuple[TextClause, dict[str, Any]]] = {
    "commits": (garbage_rows.FIND[Kind.COMMIT], {"limit": 1000}),
    "objects": (garbage_rows.FIND[Kind.OBJECT], {"limit": 1000, "spared": []}),
    "segments to tell": (
        garbage_rows.COUNTS[Kind.SEGMENT],
        {**_AGES, "spared": []},
    ),
    "empty segments": (garbage_rows.LOCK_SEGMENTS, {"limit": 1000, **_AGES}),
    "small segments": (joining_rows.FIND, {"limit": 1000, "small": 1000}),
    "small segments behind a gc": (
        joining_rows.FIND_AFTER_GC,
        {"limit": 1000, "small": 1000, "spared": []},
    ),
}


@pytest.fixture
async def filled(database: Database) -> Database:
    async with transaction(database) as connection:
        for statement in _FILL:
            values = {"objects": _OBJECTS} if ":objects" in statement else {}
            await connection.execute(text(statement), values)
    await database.execute("ANALYZE")
    return database


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from nodes(below)


async def test_no_table_is_gone_through_for_every_row_of_another(filled: Database) -> None:
    """The rows that a node gives, times how often it is asked, stay within a few of the tables."""
    for name, (statement, values) in _ASKED.items():
        explained = text(f"EXPLAIN (ANALYZE, TIMING off, FORMAT json) {statement.text}")
        async with transaction(filled) as connection:
            # As little as a larger table would leave for each of its rows: no list fits into it.
            await connection.execute(text("SET LOCAL work_mem = '64kB'"))
            told = (await connection.execute(explained, values)).scalar_one()
        found = json.loads(told) if isinstance(told, str) else told
        seen = [
            (node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)))
            for node in nodes(found[0]["Plan"])
        ]
        assert max(seen) <= 5 * _OBJECTS, (name, max(seen))
