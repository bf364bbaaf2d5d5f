"""Pushes at once, connections that break, answers that are lost."""

import asyncio
from collections.abc import Sequence

import asyncpg
import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.errors import NonFastForward
from gateway.packs.push import PushResult
from gateway.packs.repos import Repo
from leases.database import Database
from leases.errors import DatabaseUnavailable, Unavailable
from leases.steps import Step
from tests.factories import History, MadeCommit, make_history
from tests.integration.pushing import Gate, another_gate, gate_on

RIVALS = 6


def rivals(history: History, count: int = RIVALS) -> list[MadeCommit]:
    """Children of the head that know nothing of each other."""
    head = history.head
    return [
        history.commit({"own": history.content(b"%d" % number)}, parents=[head])
        for number in range(count)
    ]


async def at_once(
    gates: Sequence[Gate], repo: Repo, history: History, commits: Sequence[MadeCommit]
) -> list[PushResult | BaseException]:
    return await asyncio.gather(
        *(
            gates[number % len(gates)].push(repo, history.bundle([commit], with_objects=True))
            for number, commit in enumerate(commits)
        ),
        return_exceptions=True,
    )


@pytest.mark.parametrize("first", [False, True], ids=["known branch", "new branch"])
async def test_of_rival_pushes_exactly_one_wins(
    database: Database, engine: AsyncEngine, first: bool
) -> None:
    """Through two replicas; every other one is told that it diverged."""
    gate = gate_on(database)
    other = another_gate(gate, engine)
    repo = await gate.repo()
    history = make_history(1, commits=3, merges=False)
    if first:
        commits = [history.commit({}, message=f"root {n}") for n in range(RIVALS)]
    else:
        await gate.push(repo, history.bundle(with_objects=True))
        commits = rivals(history)
    results = await at_once([gate, other], repo, history, commits)
    await other.database.close()
    winners = [result for result in results if isinstance(result, PushResult)]
    losers = [result for result in results if isinstance(result, NonFastForward)]
    assert (len(winners), len(losers)) == (1, RIVALS - 1), results
    assert await gate.head(repo) == winners[0].remote_head
    assert await gate.events(repo) == ["repo.created"] + ["repo.pushed"] * (1 if first else 2)


async def test_the_same_push_at_once_succeeds_everywhere_and_is_one_event(
    database: Database,
) -> None:
    gate = gate_on(database)
    repo = await gate.repo()
    history = make_history(1, commits=5)
    results = await asyncio.gather(
        *(gate.push(repo, history.bundle(with_objects=True)) for _ in range(RIVALS))
    )
    assert {result.remote_head for result in results} == {history.head.commit_id}
    assert await gate.events(repo) == ["repo.created", "repo.pushed"]


async def test_pushes_to_different_branches_and_repos_do_not_hinder_each_other(
    database: Database,
) -> None:
    """The same content everywhere: rows are locked in one order, so nobody deadlocks."""
    gate = gate_on(database)
    repos = [await gate.repo(slug) for slug in ("one", "two")]
    history = make_history(1, commits=40)
    async with asyncio.TaskGroup() as group:
        for repo in repos:
            for branch in ("a", "b", "c"):
                bundle = history.bundle(with_objects=True)
                group.create_task(gate.push(repo, bundle, branch=branch))
    for repo in repos:
        assert await gate.events(repo) == ["repo.created"] + ["repo.pushed"] * 3
        assert await gate.head(repo, "c") == history.head.commit_id


async def test_forced_pushes_at_once_all_succeed(database: Database) -> None:
    gate = gate_on(database)
    repo = await gate.repo()
    history = make_history(1, commits=3, merges=False)
    await gate.push(repo, history.bundle(with_objects=True))
    commits = rivals(history, 3)
    results = await asyncio.gather(
        *(
            gate.push(repo, history.bundle([commit], with_objects=True), force=True)
            for commit in commits
        )
    )
    assert await gate.head(repo) in {result.remote_head for result in results}
    assert await gate.events(repo) == ["repo.created"] + ["repo.pushed"] * 4


@pytest.mark.parametrize("step", [Step.PUSH_WRITTEN, Step.PUSH_COMMITTED], ids=str)
async def test_a_lost_answer_is_judged_again_and_leaves_one_event(
    database: Database, step: Step
) -> None:
    """Whether the COMMIT was undelivered or only its answer lost looks the same from here."""
    lost: list[Step] = []

    def lose_once(reached: Step) -> None:
        if reached is step and not lost:
            lost.append(reached)
            raise DatabaseUnavailable

    gate = gate_on(database, steps=lose_once)
    repo = await gate.repo()
    history = make_history(1, commits=3)
    result = await gate.push(repo, history.bundle(with_objects=True))
    assert lost
    assert result.remote_head == await gate.head(repo) == history.head.commit_id
    assert await gate.events(repo) == ["repo.created", "repo.pushed"]


async def test_a_connection_that_dies_in_the_transaction_is_replaced(
    database: Database, engine: AsyncEngine
) -> None:
    killed: list[int] = []
    loop = asyncio.get_running_loop()
    killer = Database(engine)

    async def kill() -> None:
        killed.append(
            await killer.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )

    gate = gate_on(database)
    repo = await gate.repo()
    history = make_history(1, commits=3)
    await gate.push_objects(repo, history)
    pushing = loop.create_task(gate.push(repo, history.bundle()))
    await kill()
    result = await pushing
    await killer.close()
    assert killed[0] > 0
    assert result.remote_head == await gate.head(repo) == history.head.commit_id


async def test_a_push_outlives_a_lost_connection_at_any_statement(database: Database) -> None:
    gate = gate_on(database)
    repo = await gate.repo()
    history = make_history(1, commits=1)
    await gate.push(repo, history.bundle(with_objects=True))
    left = 0

    def lose(*_: object) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise asyncpg.ConnectionDoesNotExistError

    event.listen(database.engine.sync_engine, "before_cursor_execute", lose)
    lost_at = 0
    while left <= 0:  # One that is still to come was not reached: there are no more statements.
        left = lost_at = lost_at + 1
        files = {"own": history.content(b"%d" % lost_at)}
        commit = history.commit(files, parents=[history.head])
        await gate.push(repo, history.bundle([commit], with_objects=True))
        assert await gate.head(repo) == commit.commit_id
    assert lost_at > 10


async def test_a_database_that_stays_away_is_unavailable(database: Database) -> None:
    def lose(reached: Step) -> None:
        if reached is Step.PUSH_WRITTEN:
            raise DatabaseUnavailable

    gate = gate_on(database, steps=lose)
    repo = await gate.repo()
    history = make_history(1, commits=2)
    with pytest.raises(Unavailable):
        await gate.push(repo, history.bundle(with_objects=True))
    assert await gate.count("commits") == await gate.count("branches") == 0
    assert await gate.events(repo) == ["repo.created"]
