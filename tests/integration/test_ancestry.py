import pytest

from gateway.packs.known import graph_of, is_ancestor
from gateway.packs.transaction import reading
from leases.database import Database
from tests.factories import History, make_history
from tests.integration.pushing import gate_on


async def stored(database: Database, seed: int) -> History:
    history = make_history(seed, commits=25)
    gate = gate_on(database)
    await gate.push(await gate.repo(), history.bundle(with_objects=True))
    return history


@pytest.mark.parametrize(
    "foreign",
    [
        "SELECT 1",
        "DELETE FROM commit_graph",
        "DELETE FROM commit_graph WHERE generation % 2 = 0",
        "DELETE FROM commit_graph WHERE generation > 7",
    ],
)
async def test_ancestry_is_that_of_the_whole_history(database: Database, foreign: str) -> None:
    """Also where other code left graph rows out: the generations only shorten the walk."""
    history = await stored(database, 11)
    await database.execute(foreign)
    ids = list(history.commits)
    async with reading(database) as reader:
        for start in ids[::3]:
            below = history.ancestry([start])
            for head in ids:
                assert await is_ancestor(reader, head, [start]) == (head in below)
        assert not await is_ancestor(reader, "7" * 64, [ids[-1]])
        assert not await is_ancestor(reader, ids[0], [])


async def test_missing_generations_are_worked_out_and_told_apart(database: Database) -> None:
    history = await stored(database, 12)
    await database.execute("DELETE FROM commit_graph WHERE generation > 3")
    head = history.head
    async with reading(database) as reader:
        graph, derived = await graph_of(reader, [head.commit_id])
        assert await graph_of(reader, []) == ({}, {})
    assert graph[head.commit_id].generation == head.generation
    assert {key: row.generation for key, row in derived.items()} == {
        key: made.generation for key, made in history.commits.items() if made.generation > 3
    }


async def test_a_cycle_in_damaged_rows_ends(database: Database) -> None:
    history = await stored(database, 13)
    head = history.head.commit_id
    await database.execute("DELETE FROM commit_graph")
    await database.execute(
        "UPDATE commits SET parent_ids = parent_ids || $1::text WHERE parent_ids = '{}'", head
    )
    async with reading(database) as reader:
        graph, _ = await graph_of(reader, [head])
        assert head in graph
        assert not await is_ancestor(reader, "7" * 64, [head])
