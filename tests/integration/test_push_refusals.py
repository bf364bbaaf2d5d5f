"""Bad pushes: each is refused with its status, stores nothing and leaves the branch alone."""

from collections.abc import Callable
from typing import Any

import pytest

from gateway.errors import Incomplete, NonFastForward, status_of
from leases.database import Database
from leases.errors import Failure, InvalidRequest
from tests.factories import History, make_history
from tests.integration.pushing import gate_on

Bundle = dict[str, Any]


def the_next(history: History) -> Bundle:
    """One good commit more, with its object."""
    manifest = {**history.head.manifest, "new.txt": history.content(b"new")}
    after = history.commit(manifest, parents=[history.head])
    bundle = history.bundle([after])
    bundle["objects"] = history.objects(history.introduced(after))
    return bundle


def changed(**changes: Any) -> Callable[[History], Bundle]:
    def bundle(history: History) -> Bundle:
        made = the_next(history)
        made["commits"][0] |= changes
        return made

    return bundle


def without(key: str) -> Callable[[History], Bundle]:
    return lambda history: {**the_next(history), key: []}


def with_content(content: bytes) -> Callable[[History], Bundle]:
    def bundle(history: History) -> Bundle:
        made = the_next(history)
        made["objects"][0]["content"] = content
        return made

    return bundle


def with_manifest(**manifest: str) -> Callable[[History], Bundle]:
    """A commit whose ids are all right, over a manifest that is not."""

    def bundle(history: History) -> Bundle:
        paths = {path.replace("__", "/"): text for path, text in manifest.items()}
        return history.bundle([history.commit(paths, parents=[history.head])])

    return bundle


def dangling(history: History) -> Bundle:
    """A child whose parent was neither pushed nor sent."""
    parent = history.commit(history.head.manifest, parents=[history.head])
    return history.bundle([history.commit(parent.manifest, parents=[parent])])


def two_tips(history: History) -> Bundle:
    head = history.head
    return history.bundle(
        [history.commit(head.manifest, parents=[head], message=name) for name in "ab"]
    )


def foreign_object(history: History) -> Bundle:
    """An object that the store has, but this repo has not: naming it must not fetch it."""
    return with_manifest(secret="5" * 64)(history)


BAD = {
    "another message than hashed": changed(message="another"),
    "another parent than hashed": changed(parent_commit_id=None),
    "another time than hashed": changed(committed_at="2026-01-01"),
    "an id that is none": changed(commit_id="z" * 64),
    "a commit without an id": changed(commit_id=None),
    "NUL in the message": changed(message="a\0b"),
    "NUL in the author": changed(author="a\0b"),
    "a message that is bytes": changed(message=b"\xff"),
    "no snapshots": without("snapshots"),
    "no objects": without("objects"),
    "no commits": without("commits"),
    "wrong bytes under an id": with_content(b"other"),
    "an object of nobody": with_manifest(a="7" * 64),
    "an object of another repo": foreign_object,
    "an absolute path": with_manifest(__etc__passwd="7" * 64),
    "a path that climbs": with_manifest(**{"..__a": "7" * 64}),
    "a file that is a folder": with_manifest(a="7" * 64, a__b="7" * 64),
    "an object id that is none": with_manifest(a="x" * 64),
    "a dangling parent": dangling,
    "two tips": two_tips,
    "nothing at all": lambda _history: {},
    "a named head of nobody": lambda _history: {"branch_heads": {"main": "7" * 64}},
    "commits that are numbers": lambda _history: {"commits": [1, 2]},
}


@pytest.mark.parametrize("make", BAD.values(), ids=BAD.keys())
async def test_a_bad_push_stores_nothing_and_moves_nothing(
    database: Database, make: Callable[[History], Bundle]
) -> None:
    gate = gate_on(database)
    other = await gate.repo("other")
    await database.execute("INSERT INTO object_refs VALUES ($1, $2)", other.repo_id, "5" * 64)
    repo = await gate.repo()
    history = make_history(1, commits=3, merges=False)
    await gate.push(repo, history.bundle(with_objects=True))
    head = history.head.commit_id
    before = (await gate.counts(), dict(gate.store.blobs), await gate.events(repo))
    with pytest.raises(InvalidRequest) as caught:
        await gate.push(repo, make(history))
    assert status_of(caught.value) in (400, 422)
    assert (await gate.counts(), dict(gate.store.blobs), await gate.events(repo)) == before
    assert await gate.head(repo) == head


async def test_what_is_missing_is_listed(database: Database) -> None:
    gate = gate_on(database)
    history = make_history(1, commits=1, files=3)
    with pytest.raises(Incomplete) as caught:
        await gate.push(await gate.repo(), history.bundle())
    assert caught.value.fields["missing"] == sorted(history.contents)


@pytest.mark.parametrize("branch", ["", "a b", "a\0b", "../a", "a.lock", "x" * 300])
async def test_a_bad_branch_name_is_refused(database: Database, branch: str) -> None:
    gate = gate_on(database)
    history = make_history(1, commits=1)
    with pytest.raises(Incomplete, match="branch name"):
        await gate.push(await gate.repo(), history.bundle(with_objects=True), branch=branch)
    assert sum((await gate.counts()).values()) == 0


async def test_a_diverged_push_is_409_and_stores_nothing(database: Database) -> None:
    gate = gate_on(database)
    repo = await gate.repo()
    history = make_history(1, commits=4, merges=False)
    root, second, *_ = history.commits.values()
    await gate.push(repo, history.bundle(with_objects=True))
    before = (await gate.counts(), dict(gate.store.blobs))
    diverged = history.commit({"a": history.content(b"a")}, parents=[second])
    for commits in ([diverged], [root], [second]):
        bundle = history.bundle(commits, with_objects=True)
        with pytest.raises(NonFastForward) as caught:
            await gate.push(repo, bundle)
        assert status_of(caught.value) == 409
    assert (await gate.counts(), dict(gate.store.blobs)) == before


async def test_fast_forward_is_judged_on_stored_history(database: Database) -> None:
    """The bundle's own tip is far above the head, by commits that another branch brought."""
    gate = gate_on(database)
    repo = await gate.repo()
    history = make_history(8, commits=40)
    commits = list(history.commits.values())
    await gate.push(repo, history.bundle(with_objects=True), branch="long")
    await gate.push(repo, history.bundle(commits[:1]))
    result = await gate.push(repo, history.bundle([history.head]))
    assert result.remote_head == history.head.commit_id
    with pytest.raises(NonFastForward):
        await gate.push(repo, history.bundle(commits[:1]))


async def test_a_repo_that_was_deleted_meanwhile_takes_no_push(database: Database) -> None:
    gate = gate_on(database)
    repo = await gate.repo()
    await database.execute("UPDATE repos SET deleted_at = now()")
    history = make_history(1, commits=1)
    with pytest.raises(Failure, match="No such repository") as caught:
        await gate.push(repo, history.bundle(with_objects=True))
    assert status_of(caught.value) == 404
    assert await gate.count("branches") == await gate.count("commits") == 0
