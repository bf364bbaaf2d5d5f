"""Tags, releases and the ends of branches: changed once, and told once."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from sqlalchemy import Connection, event

from gateway.errors import NoSuchName
from gateway.packs.names import Names
from gateway.packs.repos import Repo
from gateway.wire.messages import PushTag
from leases.database import Database
from tests.factories import BRANCH, History, make_history
from tests.integration.pushing import CALLER, LIMITS, Gate, gate_on

Change = Callable[[Names, Repo, History], Coroutine[Any, Any, object]]


async def tag(names: Names, repo: Repo, history: History) -> object:
    sent = PushTag(tag_id="one", commit_id=history.head.commit_id, tag="v1")
    return await names.store_tags(repo.repo_id, [sent], CALLER)


async def release(names: Names, repo: Repo, _history: History) -> object:
    return await names.put_release(repo.repo_id, {"tag": "v1"}, CALLER, limits=LIMITS)


async def end_release(names: Names, repo: Repo, _history: History) -> object:
    await names.delete_release(repo.repo_id, "v0", CALLER)
    return None


async def end_branch(names: Names, repo: Repo, _history: History) -> object:
    return await names.delete_branch(repo.repo_id, BRANCH, CALLER)


CHANGES: dict[str, Change] = {
    "repo.tagged": tag,
    "repo.released": release,
    "repo.release_deleted": end_release,
    "repo.branch_deleted": end_branch,
}


async def prepared(database: Database) -> tuple[Gate, Names, Repo, History]:
    gate, history = gate_on(database), make_history(1, commits=2)
    names, repo = Names(database, gate.log), await gate.repo()
    await gate.push(repo, history.bundle(with_objects=True))
    await names.put_release(repo.repo_id, {"tag": "v0"}, CALLER, limits=LIMITS)
    return gate, names, repo, history


def lose_the_next_answer(database: Database) -> list[str]:
    """The next COMMIT is carried out, and its answer is lost."""
    lost: list[str] = []

    def lose(connection: Connection) -> None:
        if not lost:
            lost.append("commit")
            connection.connection.commit()
            raise ConnectionResetError

    event.listen(database.engine.sync_engine, "commit", lose)
    return lost


@pytest.mark.parametrize("type_", CHANGES)
async def test_a_lost_answer_is_no_second_change(database: Database, type_: str) -> None:
    """It was told twice, or as if there had never been what it took away."""
    gate, names, repo, history = await prepared(database)
    before = await gate.events(repo)
    lost = lose_the_next_answer(database)
    told = await CHANGES[type_](names, repo, history)
    assert lost
    assert await gate.events(repo) == [*before, type_]
    wanted = {"repo.tagged": 1, "repo.branch_deleted": history.head.commit_id}
    assert told == wanted.get(type_, told)


@pytest.mark.parametrize("change", [end_release, end_branch])
async def test_what_is_not_there_cannot_be_ended(database: Database, change: Change) -> None:
    _gate, names, repo, history = await prepared(database)
    await change(names, repo, history)
    with pytest.raises(NoSuchName):
        await change(names, repo, history)
