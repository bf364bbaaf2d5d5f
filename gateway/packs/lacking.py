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
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from sqlalchemy import text

from gateway.errors import MISSING_SHOWN_MAX, IncompleteRepo, UnknownCommit
from gateway.off_loop import off_loop
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
    INLINE_COMMITS,
    NO_GENERATION,
    ancestry,
    has_foreign_commits,
    has_unplaced,
    known_generations,
    rows_of,
    whole_graph,
)
from gateway.packs.known import known_commits
from gateway.packs.splice import Snapshots, cache_key
from gateway.packs.transaction import Reader
from gateway.wire.ids import PREFIX, IdForm
from leases.errors import Corrupt

# The walk's portions: most fetches end within the first; a clone of 100,000 commits takes eleven.
_PORTION_FIRST = 16
_PORTION_FACTOR = 4
_PORTION_MAX = 16_384
_ASKED_MAX = 256

# OFFSET 0 keeps each lookup on its index, as LIMIT does in commit_rows.py.
_INTRODUCED_ELSEWHERE = text(
    """
WITH lacking AS MATERIALIZED (SELECT unnest(CAST(:ids AS text[])) AS commit_id)
SELECT DISTINCT i.object_id AS entity_id, other.commit_id
  FROM lacking CROSS JOIN LATERAL (
         SELECT object_id FROM introductions WHERE commit_id = lacking.commit_id OFFSET 0) i
 CROSS JOIN LATERAL (
         SELECT commit_id FROM introductions WHERE object_id = i.object_id OFFSET 0) other
 CROSS JOIN LATERAL (
         SELECT FROM commit_refs
          WHERE repo_id = :repo_id AND commit_id = other.commit_id LIMIT 1) r
 WHERE other.commit_id NOT IN (SELECT commit_id FROM lacking)"""
)
_SNAPSHOT_ELSEWHERE = text(
    """
WITH lacking AS MATERIALIZED (SELECT unnest(CAST(:ids AS text[])) AS commit_id),
     held AS MATERIALIZED (SELECT DISTINCT unnest(CAST(:snapshot_ids AS text[])) AS snapshot_id)
SELECT held.snapshot_id AS entity_id, g.commit_id
  FROM held CROSS JOIN LATERAL (
         SELECT commit_id FROM commit_graph WHERE snapshot_id = held.snapshot_id OFFSET 0) g
 CROSS JOIN LATERAL (
         SELECT FROM commit_refs
          WHERE repo_id = :repo_id AND commit_id = g.commit_id LIMIT 1) r
 WHERE g.commit_id NOT IN (SELECT commit_id FROM lacking)"""
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

    def cache_key(self, *, encoding: str, snapshots: Snapshots = "whole", form: IdForm) -> str:
        """The key under which equal packs are shared."""
        known = [*sorted(self.known_objects), "|", *sorted(self.known_snapshots)]
        parts = {
            "repo": self.repo_id,
            "encoding": encoding,
            "form": form.name,
            "known": hashlib.sha256("\n".join(known).encode()).hexdigest(),
        }
        if snapshots != "whole":  # The keys of the form that everybody knows stay what they were.
            parts["snapshots"] = snapshots
        return cache_key(
            parts=parts,
            sets={
                "wants": self.difference.wants,
                "commons": self.difference.commons,
                "tips": self.tips,
            },
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a client wants and has of one repo: ids as they were sent."""

    repo_id: str
    want: Sequence[str]
    have: Sequence[str]


async def find_lacking(reader: Reader, question: Question) -> Lacking:
    """What the client lacks.

    Errors: UnknownCommit (404) with the wanted ids that the repo does not have; IncompleteRepo when
            the repo's history has a hole; DatabaseUnavailable.
    """
    repo_id = question.repo_id
    want, near = await _wanted_rows(reader, question, more=_PORTION_FIRST)
    offered = [commit_id for commit_id in bare_ids(question.have) if is_text(commit_id)]
    foreign = bool(offered) and await has_foreign_commits(reader, repo_id)
    found = await _walk(_Side(reader, repo_id, offered, foreign=foreign), want, near)
    lacking = Lacking(repo_id=repo_id, difference=found)
    if absent := lacking.difference.absent:
        raise IncompleteRepo(repo_id=repo_id, missing=sorted(absent)[:MISSING_SHOWN_MAX])
    if not offered or not lacking.commits:
        return lacking
    if foreign:
        return await _by_manifests(reader, lacking, offered)
    return await _by_introductions(reader, lacking, offered)


async def check_wanted(reader: Reader, question: Question) -> None:
    """Make sure that the repo has the wanted commits.

    Errors: UnknownCommit (404) with those that it has not.
    """
    wanted, lookable = _wanted(question)
    _refuse_unknown(wanted, await known_commits(reader, question.repo_id, lookable))


async def _wanted_rows(
    reader: Reader, question: Question, *, more: int
) -> tuple[dict[str, Node], dict[str, Node]]:
    """The rows of the wanted commits, and up to so many more just below them."""
    wanted, lookable = _wanted(question)
    near: dict[str, Node] = {}
    if lookable:
        count_max = len(lookable) + more
        near = await ancestry(reader, question.repo_id, lookable, count_max=count_max)
    _refuse_unknown(wanted, near)
    return {commit_id: near[commit_id] for commit_id in wanted}, near


def _wanted(question: Question) -> tuple[list[str], list[str]]:
    """The wanted ids, bare, and those of them that the database can be asked for."""
    wanted = bare_ids(question.want)
    return wanted, [commit_id for commit_id in wanted if is_text(commit_id)]


def _refuse_unknown(wanted: Sequence[str], held: Collection[str]) -> None:
    if unknown := [commit_id for commit_id in wanted if commit_id not in held]:
        raise UnknownCommit(missing=unknown[:MISSING_SHOWN_MAX])


@dataclass(frozen=True, slots=True)
class _Side:
    """The have side of a walk; a foreign history may lack rows of the graph."""

    reader: Reader
    repo_id: str
    have: Sequence[str]
    foreign: bool

    async def above(self, generation: int, ids: Sequence[str]) -> dict[str, int]:
        """The generations of those of these haves that the repo has, above a generation."""
        if self.foreign and await has_unplaced(self.reader, self.repo_id, ids):
            raise GenerationsWrong
        return await known_generations(self.reader, self.repo_id, ids, above=generation)


async def _walk(side: _Side, want: dict[str, Node], near: dict[str, Node]) -> Difference:
    """The difference; `near` holds the rows that are known already, the wants' among them."""
    try:
        _check_generations([node.generation for node in near.values()])
        return await _walk_in_portions(side, want, near)
    except GenerationsWrong:
        # Other code wrote these rows, without generations or with its own: work them out.
        graph = await whole_graph(side.reader, side.repo_id)
        work = partial(_over_whole, graph, want, side)
        return await off_loop(work, much=len(graph) > INLINE_COMMITS)


def _over_whole(graph: dict[str, Node], want: dict[str, Node], side: _Side) -> Difference:
    try:
        found = generations({commit_id: node.parents for commit_id, node in graph.items()})
    except CyclicHistory as error:
        raise Corrupt("A commit is its own ancestor.", repo_id=side.repo_id) from error
    graph = {one: replace(node, generation=found[one]) for one, node in graph.items()}
    return difference(graph, want, side.have)


async def _walk_in_portions(
    side: _Side, want: dict[str, Node], near: dict[str, Node]
) -> Difference:
    portions = _Portions(side.reader, side.repo_id)
    fence = frozenset(side.have)
    rows = await _fenced(portions, list(want), near, fence=fence)
    known = {one: rows[one].generation for one in rows.keys() & fence}
    # A have matters where the way down from the wants met it, or where it lies above the lowest
    # commit on this side of the fence: then it may reach one of these another way.
    open_rows = [node.generation for one, node in rows.items() if one not in fence]
    others = list(fence - known.keys())
    if open_rows and others:
        known |= await side.above(min(open_rows), others)
    much = len(rows) > INLINE_COMMITS
    walk = Walk(want, known)
    walk.feed(rows, ())
    while asked := await off_loop(partial(walk.needed, _ASKED_MAX), much=much):
        walk.feed(await portions.below(asked), asked)
    return await off_loop(walk.difference, much=much)


async def _fenced(
    portions: _Portions, front: list[str], near: dict[str, Node], *, fence: frozenset[str]
) -> dict[str, Node]:
    """All that is reached downwards from the front without passing a have: everything that can be
    missing, and a little more where histories join below a have.
    """
    rows: dict[str, Node] = {}
    loaded = dict(near)
    absent: set[str] = set()
    while front:
        unknown = [one for one in front if one not in loaded and one not in absent]
        if unknown:
            loaded |= await portions.below(unknown)
            absent.update(one for one in unknown if one not in loaded)
        reached = [one for one in front if one in loaded and one not in rows]
        rows.update((one, loaded[one]) for one in reached)
        parents = [p for one in reached if one not in fence for p in loaded[one].parents]
        front = [p for p in dict.fromkeys(parents) if p not in rows and p not in absent]
    return rows


class _Portions:
    """Loads the graph downwards, in growing portions."""

    def __init__(self, reader: Reader, repo_id: str) -> None:
        self._reader = reader
        self._repo_id = repo_id
        self._size = _PORTION_FIRST * _PORTION_FACTOR

    async def below(self, ids: Collection[str]) -> dict[str, Node]:
        """The rows of these commits, and of their nearest ancestors."""
        count_max = max(self._size, len(ids))
        rows = await ancestry(self._reader, self._repo_id, list(ids), count_max=count_max)
        _check_generations([node.generation for node in rows.values()])
        self._size = min(self._size * _PORTION_FACTOR, _PORTION_MAX)
        return rows


def _check_generations(found: Collection[int]) -> None:
    if NO_GENERATION in found:
        raise GenerationsWrong


async def _by_introductions(reader: Reader, lacking: Lacking, have: Sequence[str]) -> Lacking:
    repo_id, ids = lacking.repo_id, list(lacking.commits)
    snapshot_ids = [node.snapshot_id for node in lacking.commits.values() if node.snapshot_id]
    objects = await rows_of(reader, _INTRODUCED_ELSEWHERE, repo_id=repo_id, ids=ids)
    snapshots = await rows_of(
        reader, _SNAPSHOT_ELSEWHERE, repo_id=repo_id, ids=ids, snapshot_ids=snapshot_ids
    )
    elsewhere = {row.commit_id for row in (*objects, *snapshots)}
    theirs = await _held(_Side(reader, repo_id, have, foreign=False), elsewhere)
    return replace(
        lacking,
        known_objects=frozenset(row.entity_id for row in objects if row.commit_id in theirs),
        known_snapshots=frozenset(row.entity_id for row in snapshots if row.commit_id in theirs),
    )


async def _held(side: _Side, commit_ids: Collection[str]) -> set[str]:
    """Which of these commits lie in closure(have)."""
    if not commit_ids:
        return set()
    ids = list(commit_ids)
    rows = await ancestry(side.reader, side.repo_id, ids, count_max=len(ids))
    beyond = await _walk(side, rows, rows)
    return set(ids) - beyond.missing.keys()


async def _by_manifests(reader: Reader, lacking: Lacking, have: Sequence[str]) -> Lacking:
    closure = await ancestry(reader, lacking.repo_id, list(have))
    theirs = frozenset(node.snapshot_id for node in closure.values() if node.snapshot_id)
    brought = {node.snapshot_id for node in lacking.commits.values() if node.snapshot_id}
    inner = {parent for node in closure.values() for parent in node.parents}
    return replace(
        lacking,
        known_snapshots=theirs & brought,
        have_snapshots=theirs,
        tips=frozenset(closure.keys() & set(have)) - inner,
    )


def bare_ids(ids: Iterable[str]) -> list[str]:
    """Ids as key columns hold them, each once."""
    return list(dict.fromkeys(one.removeprefix(PREFIX) for one in ids))


def is_text(commit_id: str) -> bool:
    """Whether the database can hold such a text at all; what cannot be an id is then not found."""
    return commit_id.isascii() and commit_id.isprintable()
