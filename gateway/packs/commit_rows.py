"""Reading the commit graph of one repo: set-based statements, arrays bound as arrays.

Rows that other code wrote may lack their `commit_graph` row or their `record`; such a history is
read all the same (`Node.generation` 0 says that the row is missing).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.elements import TextClause

from gateway.packs.closure import Node
from gateway.packs.manifest_rows import Reader
from gateway.wire.ids import PREFIX
from leases.database import translate

NO_GENERATION = 0  # Below every real one; foreign rows may count from 0, see `generations`.

_NODE = """
SELECT r.commit_id, COALESCE(g.parent_ids, c.parent_ids) AS parent_ids, g.generation,
       replace(COALESCE(g.snapshot_id, c.snapshot_id), 'sha256:', '') AS snapshot_id
  FROM {source} JOIN commit_refs r ON r.repo_id = :repo_id AND r.commit_id = {source}.commit_id
  LEFT JOIN commit_graph g ON g.commit_id = r.commit_id
  LEFT JOIN commits c ON c.commit_id = r.commit_id"""
# The scalar subqueries keep every step of the recursion on the primary keys, whatever the planner
# believes about the size of an empty working table. The inner LIMIT ends the recursion: PostgreSQL
# evaluates only as many of its rows as are fetched.
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
_GENERATIONS = text(
    """
SELECT r.commit_id, g.generation
  FROM unnest(CAST(:ids AS text[])) AS one (commit_id)
  JOIN commit_refs r ON r.repo_id = :repo_id AND r.commit_id = one.commit_id
  LEFT JOIN commit_graph g ON g.commit_id = r.commit_id"""
)
_FOREIGN = text(
    """
SELECT EXISTS (SELECT FROM commits c JOIN commit_refs r USING (commit_id)
                WHERE c.record IS NULL AND r.repo_id = :repo_id)"""
)


async def rows_of(reader: Reader, statement: TextClause, **values: Any) -> Sequence[Any]:
    """All rows of one statement.

    Errors: DatabaseUnavailable.
    """
    try:
        return (await reader.execute(statement, values)).all()
    except (DBAPIError, OSError, TimeoutError) as error:
        failure = translate(error)
        if failure is None:
            raise
        raise failure from error


async def ancestry(
    reader: Reader, repo_id: str, ids: Sequence[str], *, count_max: int | None = None
) -> dict[str, Node]:
    """These commits and their nearest ancestors, as far as the repo has them."""
    rows = await rows_of(reader, _ANCESTRY, repo_id=repo_id, ids=list(ids), count_max=count_max)
    return {row.commit_id: _node(row) for row in rows}


async def whole_graph(reader: Reader, repo_id: str) -> dict[str, Node]:
    """Every commit of the repo."""
    return {row.commit_id: _node(row) for row in await rows_of(reader, _GRAPH, repo_id=repo_id)}


async def known_generations(reader: Reader, repo_id: str, ids: Sequence[str]) -> dict[str, int]:
    """The generations of those of these commits that the repo has."""
    rows = await rows_of(reader, _GENERATIONS, repo_id=repo_id, ids=list(ids))
    return {
        row.commit_id: NO_GENERATION if row.generation is None else row.generation for row in rows
    }


async def has_foreign_commits(reader: Reader, repo_id: str) -> bool:
    """Whether other code wrote some of this repo's commits (without `introductions`, then)."""
    (row,) = await rows_of(reader, _FOREIGN, repo_id=repo_id)
    return bool(row[0])


def _node(row: Any) -> Node:
    return Node(
        parents=tuple(dict.fromkeys(one.removeprefix(PREFIX) for one in row.parent_ids or ())),
        generation=NO_GENERATION if row.generation is None else row.generation,
        snapshot_id=row.snapshot_id,
    )
