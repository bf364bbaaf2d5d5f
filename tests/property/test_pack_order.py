"""A pack's order is a function of its content."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from gateway.packs.order import ObjectOrder, commit_order, snapshot_bases, snapshot_order
from tests.factories import History, histories
from tests.property.test_closure import Graph, graphs


@given(graphs(), st.randoms(use_true_random=False))
def test_parents_come_first_whatever_the_order_of_rows(graph: Graph, chance: random.Random) -> None:
    shuffled = list(graph.items())
    chance.shuffle(shuffled)
    order = commit_order(dict(shuffled))
    assert order == commit_order(graph)
    for commit_id, node in graph.items():
        assert all(order.index(parent) < order.index(commit_id) for parent in node.parents)


@given(graphs())
def test_each_unknown_snapshot_comes_once(graph: Graph) -> None:
    every = {node.snapshot_id for node in graph.values() if node.snapshot_id}
    known = frozenset(sorted(every)[:2])
    order = snapshot_order(graph, known)
    assert len(order) == len(set(order))
    assert set(order) == every - known


@given(graphs(), st.randoms(use_true_random=False))
def test_a_base_is_a_parents_snapshot_and_stands_before(
    graph: Graph, chance: random.Random
) -> None:
    every = sorted({node.snapshot_id for node in graph.values() if node.snapshot_id})
    order = snapshot_order(graph, frozenset(every[::3]))
    bases = snapshot_bases(graph, order)
    for snapshot_id, base in bases.items():
        assert order.index(base) < order.index(snapshot_id)
        holders = [node for node in graph.values() if node.snapshot_id == snapshot_id]
        parents = {parent for node in holders for parent in node.parents if parent in graph}
        assert base in {graph[parent].snapshot_id for parent in parents}
    shuffled = list(graph.items())
    chance.shuffle(shuffled)
    assert snapshot_bases(dict(shuffled), order) == bases


@given(histories())
def test_objects_come_by_path_then_history(history: History) -> None:
    order = ObjectOrder()
    first: dict[str, tuple[str, int]] = {}
    for number, commit in enumerate(history.commits.values()):
        order.add(commit.manifest, commit.manifest.values())
        for path in sorted(commit.manifest):
            first.setdefault(commit.manifest[path], (path, number))
    assert order.sorted() == sorted(first, key=lambda one: (*first[one], one))


def test_versions_of_one_file_stand_side_by_side() -> None:
    order = ObjectOrder()
    order.add({"b": "b1", "a": "a1"}, ["b1", "a1"])
    order.add({"b": "b2", "a": "a1"}, ["b2", "a1"])
    order.add({"b": "b2", "a": "a0"}, ["a0"])
    order.discard(["b1"])
    assert order.sorted() == ["a1", "a0", "b2"]
    assert len(order) == 3
