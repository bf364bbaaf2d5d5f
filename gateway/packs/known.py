"""What a repo holds already, asked with arrays: a push skips it by id.

Membership decides, not the global tables: a commit that another repo pushed is unknown here until
it was verified here, so nobody learns from an answer what a private repo contains.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from itertools import islice

from sqlalchemy import text
from sqlalchemy.sql.elements import TextClause

from gateway.off_loop import off_loop
from gateway.packs.arrange import GraphRow
from gateway.packs.transaction import Reader
from gateway.wire.ids import PREFIX

# So that a statement's arguments stay a few megabytes, however long the client's list is.
_IDS_PER_STATEMENT = 20_000


def _members(table: str, column: str) -> TextClause:
    # The LIMIT keeps each look-up on the primary key, as in commit_rows.py: left to itself, the
    # planner reads the whole repo for every batch.
    return text(
        "SELECT asked.id FROM unnest(CAST(:ids AS text[])) AS asked (id)"  # noqa: S608  constants
        f" CROSS JOIN LATERAL (SELECT FROM {table}"
        f" WHERE repo_id = :repo_id AND {column} = asked.id LIMIT 1) AS held"
    )


_COMMITS = _members("commit_refs", "commit_id")
_SNAPSHOTS = _members("snapshot_refs", "snapshot_id")
_OBJECTS = _members("object_refs", "object_id")

# The asked commits and, where a graph row is missing (other code wrote the commit), its ancestors
# down to those that have one.
_GRAPH = text("""
WITH RECURSIVE walk (commit_id) AS (
    SELECT unnest(CAST(:ids AS text[]))
  UNION
    SELECT replace(parent.commit_id, 'sha256:', '')
      FROM walk CROSS JOIN LATERAL unnest((
             SELECT c.parent_ids FROM commits c
              WHERE c.commit_id = walk.commit_id
                AND NOT EXISTS (SELECT FROM commit_graph g WHERE g.commit_id = c.commit_id)
           )) AS parent (commit_id)
)
SELECT walk.commit_id, g.generation,
       COALESCE(g.parent_ids, c.parent_ids, '{}') AS parent_ids,
       replace(COALESCE(g.snapshot_id, c.snapshot_id), 'sha256:', '') AS snapshot_id
  FROM walk LEFT JOIN commit_graph g USING (commit_id) LEFT JOIN commits c USING (commit_id)""")

# Upwards from the pushed commits' known parents, never below the head's generation.
_IS_ANCESTOR = text("""
WITH RECURSIVE up (commit_id) AS (
    SELECT unnest(CAST(:starts AS text[]))
  UNION
    SELECT replace(parent.commit_id, 'sha256:', '')
      FROM up CROSS JOIN LATERAL unnest(COALESCE(
             (SELECT g.parent_ids FROM commit_graph g WHERE g.commit_id = up.commit_id),
             (SELECT c.parent_ids FROM commits c WHERE c.commit_id = up.commit_id)
           )) AS parent (commit_id)
     WHERE COALESCE((SELECT g.generation FROM commit_graph g
                      WHERE g.commit_id = replace(parent.commit_id, 'sha256:', ''))
                    >= (SELECT g.generation FROM commit_graph g WHERE g.commit_id = :head), true)
)
SELECT EXISTS (SELECT FROM up WHERE commit_id = :head)""")
_BRANCH_COUNT = text(
    "SELECT count(*) FROM branches WHERE repo_id = :repo_id AND head_commit_id <> ''"
)
_HEAD = text("SELECT head_commit_id FROM branches WHERE repo_id = :repo_id AND name = :branch")


async def known_commits(reader: Reader, repo_id: str, ids: Collection[str]) -> set[str]:
    """Those of these commits that the repo holds."""
    return await _held(reader, _COMMITS, repo_id=repo_id, ids=ids)


async def known_snapshots(reader: Reader, repo_id: str, ids: Collection[str]) -> set[str]:
    """Those of these snapshots that the repo holds."""
    return await _held(reader, _SNAPSHOTS, repo_id=repo_id, ids=ids)


async def known_objects(reader: Reader, repo_id: str, ids: Collection[str]) -> set[str]:
    """Those of these objects that the repo holds."""
    return await _held(reader, _OBJECTS, repo_id=repo_id, ids=ids)


async def _held(
    reader: Reader, statement: TextClause, *, repo_id: str, ids: Collection[str]
) -> set[str]:
    held: set[str] = set()
    ordered = await off_loop(partial(_in_order, ids), much=len(ids) > _IDS_PER_STATEMENT)
    waiting = iter(ordered)
    while batch := list(islice(waiting, _IDS_PER_STATEMENT)):
        result = await reader.execute(statement, {"repo_id": repo_id, "ids": batch})
        held.update(result.scalars())
    return held


def _in_order(ids: Collection[str]) -> list[str]:
    """Sorted, so that neighbours share index pages; a few at a time, because other threads wait
    for the end of each sorting.
    """
    by_start: dict[str, list[str]] = {}
    for one in ids:
        by_start.setdefault(one[:2], []).append(one)
    return [one for start in sorted(by_start) for one in sorted(by_start[start])]


async def branch_head(reader: Reader, repo_id: str, branch: str) -> str | None:
    """Where one branch stands."""
    result = await reader.execute(_HEAD, {"repo_id": repo_id, "branch": branch})
    head: str | None = result.scalar_one_or_none()
    return head or None


async def branch_count(reader: Reader, repo_id: str) -> int:
    """How many branches the repo has that stand anywhere."""
    result = await reader.execute(_BRANCH_COUNT, {"repo_id": repo_id})
    return int(result.scalar_one())


async def graph_of(
    reader: Reader, ids: Collection[str]
) -> tuple[dict[str, GraphRow], dict[str, GraphRow]]:
    """The places of known commits, and those among them that `commit_graph` does not hold yet.

    Other code writes commits without their graph rows. The generations of such commits are worked
    out here, and the caller stores them with its own rows: the next push finds them.
    """
    if not ids:
        return {}, {}
    result = await reader.execute(_GRAPH, {"ids": list(ids)})
    stored: dict[str, GraphRow] = {}
    waiting: dict[str, tuple[tuple[str, ...], str | None]] = {}
    for row in result:
        parents = tuple(parent.removeprefix(PREFIX) for parent in row.parent_ids)
        if row.generation is None:
            waiting[row.commit_id] = (parents, row.snapshot_id)
        else:
            stored[row.commit_id] = GraphRow(
                parent_ids=parents, generation=row.generation, snapshot_id=row.snapshot_id
            )
    derived = _derived(waiting, stored)
    return stored | derived, derived


def _derived(
    waiting: Mapping[str, tuple[tuple[str, ...], str | None]], stored: Mapping[str, GraphRow]
) -> dict[str, GraphRow]:
    """Generations of the waiting commits, bottom up and without recursion: histories are deep."""
    derived: dict[str, GraphRow] = {}
    for start in waiting:
        path = [start]
        while path:
            commit_id = path[-1]
            parents, snapshot_id = waiting[commit_id]
            below = [parent for parent in parents if parent in waiting and parent not in derived]
            if below and len(path) <= len(waiting):  # Longer than all there are: damaged, a cycle.
                path.append(below[0])
                continue
            rows = [derived.get(parent) or stored.get(parent) for parent in parents]
            generation = 1 + max((row.generation for row in rows if row), default=0)
            derived[commit_id] = GraphRow(
                parent_ids=parents, generation=generation, snapshot_id=snapshot_id
            )
            path.pop()
    return derived


async def is_ancestor(reader: Reader, head: str, starts: Collection[str]) -> bool:
    """Whether `head` is one of `starts` or below one of them, by what is stored."""
    if head in starts or not starts:
        return head in starts
    result = await reader.execute(_IS_ANCESTOR, {"head": head, "starts": list(starts)})
    return bool(result.scalar_one())
