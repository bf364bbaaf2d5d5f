"""What a client lacks: closure(want) minus closure(have), found by painting the commit graph.

Commits are visited from the highest generation down, so when one is visited every commit that
descends from it has been, and its colours are final. A commit painted by a want alone is lacking.
One that both sides painted, and no common descendant did, is a maximal common commit; what lies
below it is *stale*. The walk ends as soon as nothing in the queue could still change the answer, so
it costs what the two sides differ by, not the length of the history.

The walk asks for the rows it needs (`needed`, `feed`), which keeps it free of I/O; `difference`
runs it over a graph that is already in memory. A have is a closure and not a fence: a commit that
the client reaches along another path is known all the same.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_WANT, _HAVE, _STALE = 1, 2, 4
_COMMON = _WANT | _HAVE


@dataclass(frozen=True, slots=True)
class Node:
    """One commit of the graph; a generation is higher than that of every parent."""

    parents: tuple[str, ...]
    generation: int
    snapshot_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What two sides differ by.

    Shapes:  missing: closure(want) - closure(have); commons: the maximal commits in both closures;
             wants: the wanted commits that are no ancestors of other wanted ones; border: parents
             of missing commits that are not missing; absent: those that the graph does not hold.
    """

    missing: dict[str, Node]
    border: dict[str, Node]
    commons: frozenset[str]
    wants: frozenset[str]
    absent: frozenset[str]


class GenerationsWrong(Exception):
    """A commit's generation is not above its parent's, so the order of visits means nothing."""


class CyclicHistory(Exception):
    """A commit is its own ancestor."""


class Walk:
    """The painting walk; it stops to ask whenever it reaches a commit whose row it lacks."""

    def __init__(self, want: Mapping[str, Node], have: Mapping[str, int]) -> None:
        """Shapes: want: the wanted commits' rows; have: generations of the known haves."""
        self._nodes: dict[str, Node | None] = dict(want)
        self._generations = {commit_id: node.generation for commit_id, node in want.items()}
        self._generations.update(have)
        self._colours: dict[str, int] = {}
        self._queue: list[tuple[int, str]] = []
        self._queued: set[str] = set()
        self._interesting = 0
        self._wanted = frozenset(want)
        self._reached: set[str] = set()
        self._missing: dict[str, Node] = {}
        self._commons: set[str] = set()
        self._absent: set[str] = set()
        for commit_id in want:
            self._paint(commit_id, _WANT)
        for commit_id in have:
            self._paint(commit_id, _HAVE)

    def needed(self, count_max: int) -> list[str]:
        """Walk on; the ids whose rows are needed next, none when the walk is over."""
        while self._interesting:
            commit_id = self._queue[0][1]
            if self._interesting == 1 and self._colours[commit_id] == _COMMON:
                self._visit_last(commit_id)
                continue
            if commit_id not in self._nodes or not self._has_parents(commit_id):
                return self._asked_for(commit_id, count_max)
            heapq.heappop(self._queue)
            self._queued.discard(commit_id)
            self._visit(commit_id)
        return []

    def feed(self, rows: Mapping[str, Node], asked: Iterable[str]) -> None:
        """Take rows, ancestors of those asked for among them; what was asked and did not come is
        not in the graph.
        """
        for commit_id, node in rows.items():
            self._nodes.setdefault(commit_id, node)
            self._generations.setdefault(commit_id, node.generation)
        for commit_id in asked:
            if self._nodes.setdefault(commit_id, None) is None:
                self._generations.setdefault(commit_id, 0)

    def difference(self) -> Difference:
        """The answer, once nothing is needed any more."""
        assert not self._interesting, "the walk is not over"
        border = {
            parent: node
            for child in self._missing.values()
            for parent in child.parents
            if parent not in self._missing and (node := self._nodes[parent]) is not None
        }
        return Difference(
            missing=self._missing,
            border=border,
            commons=frozenset(self._commons),
            wants=self._wanted - self._reached,
            absent=frozenset(self._absent),
        )

    def _has_parents(self, commit_id: str) -> bool:
        """Whether enough is known of a commit's parents to visit it: the rows of what may be the
        border of what is missing, the generations of the others.
        """
        node = self._nodes[commit_id]
        known = self._nodes if self._colours[commit_id] == _WANT else self._generations
        return node is None or all(parent in known for parent in node.parents)

    def _asked_for(self, commit_id: str, count_max: int) -> list[str]:
        """The rows that the next visits need: the nearest in the queue, and their parents."""
        node = self._nodes.get(commit_id)
        asked = {} if node is None else dict.fromkeys(node.parents)
        asked[commit_id] = None
        for _, queued in heapq.nsmallest(count_max, self._queue):
            asked[queued] = None
        unknown = [one for one in asked if one not in self._nodes]
        return unknown[: max(count_max, len(node.parents) if node else 1)]

    def _visit(self, commit_id: str) -> None:
        colours, node = self._colours[commit_id], self._nodes[commit_id]
        self._interesting -= _is_interesting(colours)
        if node is None:
            if colours == _WANT:
                self._absent.add(commit_id)
            return
        if colours == _WANT:
            self._missing[commit_id] = node
        elif colours == _COMMON:
            self._commons.add(commit_id)
            colours |= _STALE
        for parent in node.parents:
            if self._generations[parent] >= node.generation:
                raise GenerationsWrong
            if colours & _WANT and parent in self._wanted:
                self._reached.add(parent)
            self._paint(parent, colours)

    def _visit_last(self, commit_id: str) -> None:
        """Only this common commit is left to be judged: what lies below it need not be known."""
        self._interesting = 0
        self._commons.add(commit_id)
        node = self._nodes.get(commit_id)
        if node is not None:
            self._reached.update(self._wanted.intersection(node.parents))

    def _paint(self, commit_id: str, colours: int) -> None:
        before = self._colours.get(commit_id, 0)
        after = before | colours
        if commit_id not in self._queued:
            if before == after:
                return  # Visited before in these colours: only a wrong generation repeats it.
            self._queued.add(commit_id)
            heapq.heappush(self._queue, (-self._generations[commit_id], commit_id))
            before = 0
        self._colours[commit_id] = after
        self._interesting += _is_interesting(after) - _is_interesting(before)


def _is_interesting(colours: int) -> bool:
    return colours in (_WANT, _COMMON)


def difference(graph: Mapping[str, Node], want: Iterable[str], have: Iterable[str]) -> Difference:
    """What the owner of `have` lacks of `want`, over a whole graph; unknown haves are ignored.

    Errors: KeyError for a wanted commit that the graph does not hold.
    """
    walk = Walk(
        {commit_id: graph[commit_id] for commit_id in want},
        {commit_id: graph[commit_id].generation for commit_id in have if commit_id in graph},
    )
    walk.feed(graph, ())
    while absent := walk.needed(1):
        walk.feed({}, absent)
    return walk.difference()


def generations(parents: Mapping[str, Iterable[str]]) -> dict[str, int]:
    """Every commit's generation, computed from the parents alone; parents not given count as none.

    Errors: CyclicHistory.
    """
    known = {commit_id: [p for p in of if p in parents] for commit_id, of in parents.items()}
    children: dict[str, list[str]] = {commit_id: [] for commit_id in known}
    for commit_id, of in known.items():
        for parent in of:
            children[parent].append(commit_id)
    waiting = {commit_id: len(of) for commit_id, of in known.items()}
    ready = [commit_id for commit_id, count in waiting.items() if count == 0]
    found: dict[str, int] = {}
    while ready:
        commit_id = ready.pop()
        found[commit_id] = 1 + max((found[parent] for parent in known[commit_id]), default=0)
        for child in children[commit_id]:
            waiting[child] -= 1
            if waiting[child] == 0:
                ready.append(child)
    if len(found) < len(known):
        raise CyclicHistory
    return found
