"""The painting walk against the naive set version, over any graph and any portions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.packs.closure import (
    CyclicHistory,
    Difference,
    GenerationsWrong,
    Node,
    Walk,
    difference,
    generations,
)

Graph = dict[str, Node]


def graph_of(parents: Mapping[str, Iterable[str]]) -> Graph:
    found = generations(parents)
    return {one: Node(tuple(of), found[one], f"s-{one}") for one, of in parents.items()}


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    count = draw(st.integers(1, 14))
    names = draw(st.permutations([f"c{number:02}" for number in range(count)]))
    parents = {
        name: draw(st.lists(st.sampled_from(names[:at]), max_size=3, unique=True)) if at else []
        for at, name in enumerate(names)
    }
    return graph_of(parents)


@st.composite
def questions(draw: st.DrawFn) -> tuple[Graph, list[str], list[str]]:
    graph = draw(graphs())
    ids = st.lists(st.sampled_from(sorted(graph)), max_size=4)
    return graph, draw(ids), draw(ids) + draw(st.lists(st.just("unknown"), max_size=1))


def closure(graph: Graph, ids: Iterable[str]) -> set[str]:
    seen: set[str] = set()
    waiting = [one for one in ids if one in graph]
    while waiting:
        one = waiting.pop()
        if one not in seen:
            seen.add(one)
            waiting += graph[one].parents
    return seen


def strictly_below(graph: Graph, one: str) -> set[str]:
    return closure(graph, graph[one].parents)


def tops(graph: Graph, ids: set[str]) -> set[str]:
    return ids - {below for one in ids for below in strictly_below(graph, one)}


def walked(graph: Graph, want: list[str], have: list[str], *, portion: int) -> Difference:
    """The walk as the planner runs it: rows come in portions, with some nobody asked for."""
    walk = Walk(
        {one: graph[one] for one in want},
        {one: graph[one].generation for one in have if one in graph},
    )
    for _ in range(10_000):
        asked = walk.needed(portion)
        if not asked:
            return walk.difference()
        rows = {one: graph[one] for one in asked if one in graph}
        rows |= {parent: graph[parent] for node in list(rows.values()) for parent in node.parents}
        walk.feed(rows, asked)
    raise AssertionError("the walk does not end")


@pytest.mark.parametrize(
    "find",
    [
        difference,
        lambda graph, want, have: walked(graph, want, have, portion=1),
        lambda graph, want, have: walked(graph, want, have, portion=5),
    ],
    ids=["whole", "one by one", "in portions"],
)
@given(questions())
@example(  # The parent's generation was known, being a have, but not its row.
    (
        graph_of({"c0": [], "c1": [], "c3": ["c0", "c1"], "c4": ["c0", "c1"]}),
        ["c0", "c3", "c4"],
        ["c1", "c3"],
    )
)
def test_the_walk_finds_what_sets_say(
    find: Callable[[Graph, list[str], list[str]], Difference],
    question: tuple[Graph, list[str], list[str]],
) -> None:
    graph, want, have = question
    wanted, held = closure(graph, want), closure(graph, have)
    found = find(graph, want, have)
    assert found.missing.keys() == wanted - held
    assert found.commons == tops(graph, wanted & held)
    assert found.wants == tops(graph, set(want))
    border = {parent for one in wanted - held for parent in graph[one].parents} & held
    assert found.border.keys() == border
    assert found.absent == frozenset()


@given(graphs())
def test_generations_are_above_those_of_parents(graph: Graph) -> None:
    for node in graph.values():
        assert node.generation == 1 + max(
            (graph[parent].generation for parent in node.parents), default=0
        )


def test_a_hole_in_the_history_is_told() -> None:
    graph = {"b": Node(("a",), 2)}
    assert difference(graph, ["b"], []).absent == {"a"}


def test_a_generation_that_lies_is_noticed() -> None:
    graph = {"a": Node((), 5), "b": Node(("a",), 5)}
    with pytest.raises(GenerationsWrong):
        difference(graph, ["b"], [])


def test_a_cycle_is_noticed() -> None:
    with pytest.raises(CyclicHistory):
        generations({"a": ["b"], "b": ["a"]})


def test_a_merge_is_not_fenced_by_the_first_common_commit() -> None:
    """The client holds the old head; what it reaches on the other side of a merge is known too."""
    graph = graph_of(
        {"1": [], "2": ["1"], "3": ["2"], "side": ["1"], "merge": ["3", "side"], "new": ["merge"]}
    )
    found = difference(graph, ["new"], ["3", "side"])
    assert set(found.missing) == {"merge", "new"}
    assert found.commons == {"3", "side"}


def test_the_walk_ends_near_the_difference() -> None:
    """One new commit on a long history: nothing below the common head is asked for."""
    graph = graph_of({str(n): [str(n - 1)] if n else [] for n in range(1000)})
    walk = Walk({"999": graph["999"]}, {"998": graph["998"].generation})
    asked_in_all: list[str] = []
    while asked := walk.needed(10):
        asked_in_all += asked
        walk.feed({one: graph[one] for one in asked}, asked)
    assert set(walk.difference().missing) == {"999"}
    assert len(asked_in_all) <= 3
