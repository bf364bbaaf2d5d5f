"""What a push writes, in one transaction: a handful of statements, however many commits.

Rows go in by `unnest`, in the order of their ids, so that two pushes of the same content lock them
in the same order. What stands already keeps its content, since equal ids mean equal content, but
it is touched: `gc` then leaves it alone (gateway/packs/garbage.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.elements import TextClause

from gateway.packs.arrange import GraphRow

Columns = dict[str, Any]

# A statement of this many rows holds some 15 MB of ids.
ROWS_PER_STATEMENT_MAX = 100_000

_COMMITS = text("""
INSERT INTO commits (commit_id, branch, parent_ids, message, author, timestamp, snapshot_id, record)
SELECT id, branch, CAST(parents AS text[]), message, author, committed_at, snapshot_id, record
  FROM unnest(CAST(:ids AS text[]), CAST(:branches AS text[]), CAST(:parents AS text[]),
              CAST(:messages AS text[]), CAST(:authors AS text[]), CAST(:times AS timestamptz[]),
              CAST(:snapshots AS text[]), CAST(:records AS bytea[]))
       AS new (id, branch, parents, message, author, committed_at, snapshot_id, record)
ON CONFLICT (commit_id) DO UPDATE SET branch = commits.branch""")
_GRAPH = text("""
INSERT INTO commit_graph (commit_id, parent_ids, generation, snapshot_id)
SELECT id, CAST(parents AS text[]), generation, snapshot_id
  FROM unnest(CAST(:ids AS text[]), CAST(:parents AS text[]), CAST(:generations AS int[]),
              CAST(:snapshots AS text[]))
       AS new (id, parents, generation, snapshot_id)
ON CONFLICT DO NOTHING""")
_SNAPSHOTS = text("""
INSERT INTO snapshots
       (snapshot_id, manifest_blob, base_snapshot_id, delta_blob, entry_count, created_at)
SELECT id, manifest_blob, base, delta_blob, entry_count, COALESCE(created_at, now())
  FROM unnest(CAST(:ids AS text[]), CAST(:manifests AS bytea[]), CAST(:bases AS text[]),
              CAST(:deltas AS bytea[]), CAST(:counts AS int[]), CAST(:times AS timestamptz[]))
       AS new (id, manifest_blob, base, delta_blob, entry_count, created_at)
ON CONFLICT (snapshot_id) DO UPDATE SET entry_count = snapshots.entry_count""")
_INTRODUCTIONS = text("""
INSERT INTO introductions (object_id, commit_id)
SELECT * FROM unnest(CAST(:objects AS text[]), CAST(:commits AS text[]))
ON CONFLICT DO NOTHING""")
_SNAPSHOT_REFS = text("""
INSERT INTO snapshot_refs (repo_id, snapshot_id) SELECT :repo_id, unnest(CAST(:ids AS text[]))
ON CONFLICT DO NOTHING""")
_COMMIT_REFS = text("""
INSERT INTO commit_refs (repo_id, commit_id) SELECT :repo_id, unnest(CAST(:ids AS text[]))
ON CONFLICT DO NOTHING""")

# Compare-and-swap. The first writer holds the branch's row until its commit; a second one waits
# here, then finds another head than it expected and writes nothing.
_BRANCH_NEW = text("""
INSERT INTO branches (repo_id, name, head_commit_id) VALUES (:repo_id, :branch, :head)
ON CONFLICT (repo_id, name) DO UPDATE SET head_commit_id = excluded.head_commit_id
 WHERE COALESCE(branches.head_commit_id, '') = ''
RETURNING name""")
_BRANCH_MOVED = text("""
UPDATE branches SET head_commit_id = :head
 WHERE repo_id = :repo_id AND name = :branch AND head_commit_id = :expected
RETURNING name""")
# The default branch must be one that has a head; the first push decides which.
_REPO_PUSHED = text("""
UPDATE repos SET pushed_at = clock_timestamp(), default_branch = CASE
         WHEN EXISTS (SELECT FROM branches b WHERE b.repo_id = repos.repo_id
                         AND b.name = repos.default_branch AND b.head_commit_id <> '')
         THEN default_branch ELSE :branch END
 WHERE repo_id = :repo_id AND deleted_at IS NULL
RETURNING repo_id""")


@dataclass(frozen=True, slots=True, kw_only=True)
class PushRows:
    """Every row of a push but the branch's, as arrays that are ready to bind."""

    commits: Columns
    graph: Columns
    snapshots: Columns
    introductions: Sequence[Columns]

    @property
    def commit_count(self) -> int:
        """How many commits are new to the repo."""
        return len(self.commits["ids"])

    @property
    def is_empty(self) -> bool:
        """Whether the repo holds everything already."""
        return not (self.commits["ids"] or self.snapshots["ids"])


def graph_columns(graph: Mapping[str, GraphRow]) -> Columns:
    """Rows of `commit_graph` as arrays."""
    rows = sorted(graph.items())
    return {
        "ids": [commit_id for commit_id, _ in rows],
        "parents": [array_text(row.parent_ids) for _, row in rows],
        "generations": [row.generation for _, row in rows],
        "snapshots": [row.snapshot_id for _, row in rows],
    }


def introduction_columns(introductions: Collection[tuple[str, str]]) -> list[Columns]:
    """Rows of `introductions` as arrays, in bounded portions."""
    rows = sorted(introductions)
    return [
        {"objects": [row[0] for row in portion], "commits": [row[1] for row in portion]}
        for portion in _portions(rows)
    ]


def array_text(ids: Sequence[str]) -> str:
    """Ids (hex only) as an array literal: `unnest` would flatten an array of arrays."""
    return "{" + ",".join(ids) + "}"


def _portions(rows: list[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    for start in range(0, len(rows), ROWS_PER_STATEMENT_MAX):
        yield rows[start : start + ROWS_PER_STATEMENT_MAX]


async def write_rows(connection: AsyncConnection, repo_id: str, rows: PushRows) -> None:
    """Insert all of them, skipping what stands already."""
    for statement, columns in (
        (_COMMITS, rows.commits),
        (_GRAPH, rows.graph),
        (_SNAPSHOTS, rows.snapshots),
        (_SNAPSHOT_REFS, {"ids": rows.snapshots["ids"], "repo_id": repo_id}),
        (_COMMIT_REFS, {"ids": rows.commits["ids"], "repo_id": repo_id}),
    ):
        if columns["ids"]:
            await connection.execute(statement, columns)
    for portion in rows.introductions:
        await connection.execute(_INTRODUCTIONS, portion)


async def move_branch(
    connection: AsyncConnection, repo_id: str, branch: str, *, expected: str | None, head: str
) -> bool:
    """Point the branch at `head` if it stands at `expected` (None: no such branch yet)."""
    statement: TextClause = _BRANCH_NEW if expected is None else _BRANCH_MOVED
    values = {"repo_id": repo_id, "branch": branch, "head": head}
    if expected is not None:
        values["expected"] = expected
    return (await connection.execute(statement, values)).one_or_none() is not None


async def mark_pushed(connection: AsyncConnection, repo_id: str, branch: str) -> bool:
    """Note the push in the repo's row; False when the repo is gone."""
    values = {"repo_id": repo_id, "branch": branch}
    return (await connection.execute(_REPO_PUSHED, values)).one_or_none() is not None
