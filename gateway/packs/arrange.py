"""The place of new commits in the history, and what is stored of them.

Generations and introductions are worked out once, here, so that no fetch has to: a generation
bounds every walk over the graph, and an introduction says which commit first brought an object.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gateway.packs.bundle import Newcomers
from gateway.packs.commits import SentCommit
from gateway.packs.manifest import Manifest, StoredForm, choose_form


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphRow:
    """A commit's place in the history."""

    parent_ids: tuple[str, ...]
    generation: int
    snapshot_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the database says about the known commits and snapshots that new ones refer to."""

    graph: Mapping[str, GraphRow] = field(default_factory=dict)
    manifests: Mapping[str, Manifest] = field(default_factory=dict)
    depths: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arranged:
    """The rows of a push, but for the branch: commits with parents before children."""

    graph: Mapping[str, GraphRow]
    introductions: Sequence[tuple[str, str]]
    forms: Mapping[str, StoredForm]


def arrange(new: Newcomers, around: Surroundings) -> Arranged:
    """Order the new commits, place them in the graph, and choose what is stored of them."""
    graph = dict(around.graph)
    manifests = dict(around.manifests)
    manifests |= {key: snapshot.manifest for key, snapshot in new.snapshots.items()}
    forms: dict[str, StoredForm] = {}
    introductions: list[tuple[str, str]] = []
    ordered: dict[str, GraphRow] = {}
    for commit in _parents_first(new.commits):
        parents = [graph[parent] for parent in commit.parent_ids]
        row = GraphRow(
            parent_ids=commit.parent_ids,
            generation=1 + max((parent.generation for parent in parents), default=0),
            snapshot_id=commit.snapshot_id,
        )
        graph[commit.commit_id] = ordered[commit.commit_id] = row
        below = [parent.snapshot_id for parent in parents if parent.snapshot_id in manifests]
        known = [manifests[snapshot_id] for snapshot_id in below if snapshot_id]
        introduced = _introduced(manifests.get(commit.snapshot_id, {}), known)
        introductions += [(object_id, commit.commit_id) for object_id in introduced]
        if commit.snapshot_id in new.snapshots and commit.snapshot_id not in forms:
            base = next(iter(below), None)
            form = _form(manifests, commit.snapshot_id, base=base, forms=forms, around=around)
            forms[commit.snapshot_id] = form
    for snapshot_id, snapshot in new.snapshots.items():  # Those that no new commit names.
        if snapshot_id not in forms:
            forms[snapshot_id] = choose_form(snapshot.manifest)
    return Arranged(graph=ordered, introductions=introductions, forms=forms)


def _form(
    manifests: Mapping[str, Manifest],
    snapshot_id: str,
    *,
    base: str | None,
    forms: Mapping[str, StoredForm],
    around: Surroundings,
) -> StoredForm:
    manifest = manifests[snapshot_id]
    if base is None or base == snapshot_id:
        return choose_form(manifest)
    depth = forms[base].depth if base in forms else around.depths.get(base, 0)
    return choose_form(manifest, base_snapshot_id=base, base=manifests[base], base_depth=depth)


def _introduced(manifest: Manifest, parents: Sequence[Manifest]) -> set[str]:
    """Objects in none of the parents; only paths that differ from the first parent can hold one."""
    first = parents[0] if parents else {}
    changed = {object_id for path, object_id in manifest.items() if first.get(path) != object_id}
    for parent in parents:
        if not changed:
            break
        changed.difference_update(parent.values())
    return changed


def _parents_first(commits: Mapping[str, SentCommit]) -> list[SentCommit]:
    """The commits in an order in which each follows its parents; ids decide among equals.

    Verified ids make cycles impossible: a commit's id is a hash over its parents' ids.
    """
    children: dict[str, list[str]] = {}
    waiting_for: dict[str, int] = {}
    for commit_id, commit in commits.items():
        inside = [parent for parent in commit.parent_ids if parent in commits]
        waiting_for[commit_id] = len(inside)
        for parent in inside:
            children.setdefault(parent, []).append(commit_id)
    ready = sorted(commit_id for commit_id, count in waiting_for.items() if count == 0)
    ordered: list[SentCommit] = []
    while ready:
        commit_id = ready.pop()
        ordered.append(commits[commit_id])
        for child in children.get(commit_id, ()):
            waiting_for[child] -= 1
            if waiting_for[child] == 0:
                ready.append(child)
    assert len(ordered) == len(commits)
    return ordered
