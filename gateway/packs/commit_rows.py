"""Reading the commit graph of one repo: set-based statements, arrays bound as arrays.

Rows that other code wrote may lack their `commit_graph` row or their `record`; such a history is
read all the same (`Node.generation` 0 says that the row is missing).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from sqlalchemy import text
from sqlalchemy.sql.elements import TextClause

from gateway.off_loop import off_loop
from gateway.packs.closure import Node
from gateway.packs.transaction import Reader
from gateway.wire.ids import PREFIX

# What is done for each of so many takes some 20 ms; for more it is done beside the event loop.
INLINE_COMMITS = 5000
NO_GENERATION = 0  # Below every real one; foreign rows may count from 0, see `generations`.

# Every lookup stands in a subquery with a LIMIT, which keeps it on the primary key, row by row.
# Left to itself, the planner reads the whole repo where statistics are missing or old: 170 ms
# instead of 11 for a portion of 512 commits out of 20,000.
_NODE = """
SELECT {source}.commit_id, COALESCE(g.parent_ids, c.parent_ids) AS parent_ids, g.generation,
       replace(COALESCE(g.snapshot_id, c.snapshot_id), 'sha256:', '') AS snapshot_id
  FROM {source} CROSS JOIN LATERAL (
         SELECT FROM commit_refs
          WHERE repo_id = :repo_id AND commit_id = {source}.commit_id LIMIT 1) r
  LEFT JOIN LATERAL (
         SELECT * FROM commit_graph WHERE commit_id = {source}.commit_id LIMIT 1) g ON true
  LEFT JOIN LATERAL (
         SELECT parent_ids, snapshot_id FROM commits
          WHERE g.snapshot_id IS NULL AND commit_id = {source}.commit_id LIMIT 1) c ON true"""
# The inner LIMIT ends the recursion: PostgreSQL evaluates only as many of its rows as are fetched.
_ANCESTRY = text(
    f"""
WITH RECURSIVE walk (commit_id) AS (
    SELECT unnest(CAST(:ids AS text[]))
  UNION
    SELECT replace(parent.commit_id, 'sha256:', '')
      FROM walk CROSS JOIN LATERAL unnest(COALESCE(
             (SELECT g.parent_ids FROM commit_graph g WHERE g.commit_id = walk.commit_id),
             (SELECT c.parent_ids FROM commits c WHERE c.commit_id = walk.commit_id)
           )) AS parent (commit_id)
), near AS MATERIALIZED (SELECT commit_id FROM walk LIMIT :count_max)
{_NODE.format(source="near")}"""  # noqa: S608  constants
)
_GRAPH = text(
    "WITH held AS (SELECT commit_id FROM commit_refs WHERE repo_id = :repo_id)"  # noqa: S608  constants
    + _NODE.format(source="held")
)
# The graph first: of a client's many haves few lie above a generation, and only these are looked up
# in the repo (20,000 haves: 50 ms; asking for the membership of each first, 170 ms).
_GENERATIONS = text(
    """
SELECT g.commit_id, g.generation FROM commit_graph g
 WHERE g.commit_id = ANY(CAST(:ids AS text[])) AND g.generation > :above
   AND EXISTS (SELECT FROM commit_refs
                WHERE repo_id = :repo_id AND commit_id = g.commit_id)"""
)
_UNPLACED = text(
    """
SELECT r.commit_id FROM commit_refs r
 WHERE r.repo_id = :repo_id AND r.commit_id = ANY(CAST(:ids AS text[]))
   AND NOT EXISTS (SELECT FROM commit_graph g WHERE g.commit_id = r.commit_id)"""
)
_FOREIGN = text(
    """
SELECT EXISTS (
    SELECT FROM commits c CROSS JOIN LATERAL (
             SELECT FROM commit_refs
              WHERE repo_id = :repo_id AND commit_id = c.commit_id LIMIT 1) r
     WHERE c.record IS NULL)"""
)


async def rows_of(reader: Reader, statement: TextClause, **values: Any) -> Sequence[Any]:
    """All rows of one statement."""
    return (await reader.execute(statement, values)).all()


async def ancestry(
    reader: Reader, repo_id: str, ids: Sequence[str], *, count_max: int | None = None
) -> dict[str, Node]:
    """These commits and their nearest ancestors, as far as the repo has them."""
    rows = await rows_of(reader, _ANCESTRY, repo_id=repo_id, ids=list(ids), count_max=count_max)
    return await off_loop(partial(_nodes, rows), much=len(rows) > INLINE_COMMITS)


async def whole_graph(reader: Reader, repo_id: str) -> dict[str, Node]:
    """Every commit of the repo."""
    rows = await rows_of(reader, _GRAPH, repo_id=repo_id)
    return await off_loop(partial(_nodes, rows), much=len(rows) > INLINE_COMMITS)


async def known_generations(
    reader: Reader, repo_id: str, ids: Sequence[str], *, above: int
) -> dict[str, int]:
    """The generations of those of these commits that the repo has, as far as they are above one."""
    rows = await rows_of(reader, _GENERATIONS, repo_id=repo_id, ids=list(ids), above=above)
    return {row.commit_id: row.generation for row in rows}


async def has_unplaced(reader: Reader, repo_id: str, ids: Sequence[str]) -> bool:
    """Whether the repo has some of these commits without their `commit_graph` row."""
    return bool(await rows_of(reader, _UNPLACED, repo_id=repo_id, ids=list(ids)))


async def has_foreign_commits(reader: Reader, repo_id: str) -> bool:
    """Whether other code wrote some of this repo's commits (without `introductions`, then)."""
    (row,) = await rows_of(reader, _FOREIGN, repo_id=repo_id)
    return bool(row[0])


def _nodes(rows: Sequence[Any]) -> dict[str, Node]:
    return {row.commit_id: _node(row) for row in rows}


def _node(row: Any) -> Node:
    return Node(
        parents=tuple(dict.fromkeys(one.removeprefix(PREFIX) for one in row.parent_ids or ())),
        generation=NO_GENERATION if row.generation is None else row.generation,
        snapshot_id=row.snapshot_id,
    )
