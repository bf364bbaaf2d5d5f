"""What a client lacks, as far as a cache key needs to know it: the cheap half of planning.

Commits come from the painting walk (`closure.py`), which asks for the graph in growing portions. An
object that a lacking commit brings is known to the client all the same when a commit in
closure(have) introduced it too; so is a snapshot that such a commit has. What is left out for that
reason is part of the key, so that two callers share a pack exactly when its bytes are the same.

In histories that other code wrote, `introductions` are missing. There the manifests of the whole
have side decide (`have_snapshots`), and the client's own tips are part of the key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from sqlalchemy import text

from gateway.errors import IncompleteRepo, UnknownCommit
from gateway.packs.closure import (
    CyclicHistory,
    Difference,
    GenerationsWrong,
    Node,
    Walk,
    difference,
    generations,
)
from gateway.packs.commit_rows import (
    NO_GENERATION,
    ancestry,
    has_foreign_commits,
    known_generations,
    rows_of,
    whole_graph,
)
from gateway.packs.manifest_rows import Reader
from gateway.packs.splice import cache_key
from gateway.wire.ids import PREFIX, IdForm
from leases.errors import Corrupt

# The walk's portions: most fetches end within the first; a clone of 100,000 commits takes six.
_PORTION_FIRST = 512
_PORTION_FACTOR = 4
_PORTION_MAX = 65_536
_ASKED_MAX = 256
_SHOWN_MAX = 1000

_INTRODUCED_ELSEWHERE = text(
    """
WITH lacking AS MATERIALIZED (SELECT unnest(CAST(:ids AS text[])) AS commit_id)
SELECT DISTINCT i.object_id AS entity_id, other.commit_id
  FROM lacking JOIN introductions i USING (commit_id)
  JOIN introductions other ON other.object_id = i.object_id
  JOIN commit_refs r ON r.repo_id = :repo_id AND r.commit_id = other.commit_id
 WHERE NOT EXISTS (SELECT FROM lacking l WHERE l.commit_id = other.commit_id)"""
)
_SNAPSHOT_ELSEWHERE = text(
    """
WITH lacking AS MATERIALIZED (SELECT unnest(CAST(:ids AS text[])) AS commit_id),
     held AS MATERIALIZED (SELECT DISTINCT unnest(CAST(:snapshot_ids AS text[])) AS snapshot_id)
SELECT g.snapshot_id AS entity_id, g.commit_id
  FROM held JOIN commit_graph g USING (snapshot_id)
  JOIN commit_refs r ON r.repo_id = :repo_id AND r.commit_id = g.commit_id
 WHERE NOT EXISTS (SELECT FROM lacking l WHERE l.commit_id = g.commit_id)"""
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lacking:
    """What a client lacks of one repo.

    Shapes:  commits: id -> node; known_*: what those commits bring and the client has anyway;
             have_snapshots: where manifests have to decide, all snapshots of closure(have);
             tips: what stands in the key for the have side there.
    """

    repo_id: str
    difference: Difference
    known_objects: frozenset[str] = frozenset()
    known_snapshots: frozenset[str] = frozenset()
    have_snapshots: frozenset[str] = frozenset()
    tips: frozenset[str] = frozenset()

    @property
    def commits(self) -> dict[str, Node]:
        """The commits to send."""
        return self.difference.missing

    def cache_key(self, *, encoding: str, form: IdForm) -> str:
        """The key under which equal packs are shared."""
        known = [*sorted(self.known_objects), "|", *sorted(self.known_snapshots)]
        return cache_key(
            parts={
                "repo": self.repo_id,
                "encoding": encoding,
                "form": form.name,
                "known": hashlib.sha256("\n".join(known).encode()).hexdigest(),
            },
            sets={
                "wants": self.difference.wants,
                "commons": self.difference.commons,
                "tips": self.tips,
            },
        )


async def find_lacking(
    reader: Reader, repo_id: str, *, want: Iterable[str], have: Iterable[str]
) -> Lacking:
    """What the owner of `have` lacks of `want`.

    Errors: UnknownCommit (404) with the wanted ids that the repo does not have; IncompleteRepo when
            the repo's history has a hole; DatabaseUnavailable.
    """
    wanted = _bare(want)
    lookable = [commit_id for commit_id in wanted if _is_text(commit_id)]
    rows = await ancestry(reader, repo_id, lookable, count_max=len(lookable)) if lookable else {}
    if unknown := [commit_id for commit_id in wanted if commit_id not in rows]:
        raise UnknownCommit(missing=unknown[:_SHOWN_MAX])
    offered = [commit_id for commit_id in _bare(have) if _is_text(commit_id)]
    known = await known_generations(reader, repo_id, offered) if offered else {}
    lacking = Lacking(
        repo_id=repo_id, difference=await _walk(reader, repo_id, want=rows, have=known)
    )
    if absent := lacking.difference.absent:
        raise IncompleteRepo(repo_id=repo_id, missing=sorted(absent)[:_SHOWN_MAX])
    if not known or not lacking.commits:
        return lacking
    if await has_foreign_commits(reader, repo_id):
        return await _by_manifests(reader, lacking, known)
    return await _by_introductions(reader, lacking, known)


async def _walk(
    reader: Reader, repo_id: str, *, want: dict[str, Node], have: dict[str, int]
) -> Difference:
    try:
        return await _walk_in_portions(reader, repo_id, want=want, have=have)
    except GenerationsWrong:
        # Other code wrote these rows, without generations or with its own: work them out.
        graph = await whole_graph(reader, repo_id)
        try:
            found = generations({commit_id: node.parents for commit_id, node in graph.items()})
        except CyclicHistory as error:
            raise Corrupt("A commit is its own ancestor.", repo_id=repo_id) from error
        graph = {one: replace(node, generation=found[one]) for one, node in graph.items()}
        return difference(graph, want, have)


async def _walk_in_portions(
    reader: Reader, repo_id: str, *, want: dict[str, Node], have: dict[str, int]
) -> Difference:
    _check_generations([node.generation for node in want.values()])
    _check_generations(have.values())
    walk = Walk(want, have)
    portion = _PORTION_FIRST
    while asked := walk.needed(_ASKED_MAX):
        count_max = max(portion, len(asked))
        rows = await ancestry(reader, repo_id, asked, count_max=count_max)
        _check_generations([node.generation for node in rows.values()])
        walk.feed(rows, asked)
        portion = min(portion * _PORTION_FACTOR, _PORTION_MAX)
    return walk.difference()


def _check_generations(found: Collection[int]) -> None:
    if NO_GENERATION in found:
        raise GenerationsWrong


async def _by_introductions(reader: Reader, lacking: Lacking, have: dict[str, int]) -> Lacking:
    repo_id, ids = lacking.repo_id, list(lacking.commits)
    snapshot_ids = [node.snapshot_id for node in lacking.commits.values() if node.snapshot_id]
    objects = await rows_of(reader, _INTRODUCED_ELSEWHERE, repo_id=repo_id, ids=ids)
    snapshots = await rows_of(
        reader, _SNAPSHOT_ELSEWHERE, repo_id=repo_id, ids=ids, snapshot_ids=snapshot_ids
    )
    elsewhere = {row.commit_id for row in (*objects, *snapshots)}
    theirs = await _held(reader, repo_id, elsewhere, have)
    return replace(
        lacking,
        known_objects=frozenset(row.entity_id for row in objects if row.commit_id in theirs),
        known_snapshots=frozenset(row.entity_id for row in snapshots if row.commit_id in theirs),
    )


async def _held(
    reader: Reader, repo_id: str, commit_ids: Collection[str], have: dict[str, int]
) -> set[str]:
    """Which of these commits lie in closure(have)."""
    if not commit_ids:
        return set()
    rows = await ancestry(reader, repo_id, list(commit_ids), count_max=len(commit_ids))
    beyond = await _walk(reader, repo_id, want=rows, have=have)
    return set(commit_ids) - beyond.missing.keys()


async def _by_manifests(reader: Reader, lacking: Lacking, have: dict[str, int]) -> Lacking:
    closure = await ancestry(reader, lacking.repo_id, list(have))
    theirs = frozenset(node.snapshot_id for node in closure.values() if node.snapshot_id)
    brought = {node.snapshot_id for node in lacking.commits.values() if node.snapshot_id}
    inner = {parent for node in closure.values() for parent in node.parents}
    return replace(
        lacking,
        known_snapshots=theirs & brought,
        have_snapshots=theirs,
        tips=frozenset(have.keys() - inner),
    )


def _bare(ids: Iterable[str]) -> list[str]:
    """Ids as key columns hold them, each once."""
    return list(dict.fromkeys(one.removeprefix(PREFIX) for one in ids))


def _is_text(commit_id: str) -> bool:
    """Whether the database can hold such a text at all; what cannot be an id is then not found."""
    return commit_id.isascii() and commit_id.isprintable()
