"""Git repositories as Muse histories: what is kept, what is recorded beside, what is cut."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

import msgpack
import pytest
from dulwich.objects import ObjectID

from gateway.git_import import GitHistory, GitHistoryEmpty, GitObjectMissing, GitRepositoryMissing
from gateway.wire.ids import is_commit_id, is_snapshot_id
from leases.errors import InvalidRequest, NotFound
from tests.factories import make_history
from tests.git_repositories import EXECUTABLE, LINK, SUBMODULE, GitRepository


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "repository"


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def assert_valid(history: GitHistory) -> None:
    """Parents stand first, and every id is what its formula says."""
    seen: set[str] = set()
    for commit_id, parents in history.parents.items():
        assert set(parents) <= seen
        seen.add(commit_id)
        commit, snapshot = history.read(commit_id)
        assert commit["commit_id"] == commit_id
        assert is_snapshot_id(snapshot["snapshot_id"], snapshot["manifest"])
        assert is_commit_id(
            commit_id,
            parent_ids=[p for p in parents if p],
            snapshot_id=commit["snapshot_id"],
            message=commit["message"],
            committed_at=commit["committed_at"],
        )
        msgpack.packb([commit, snapshot])
        for object_id in snapshot["manifest"].values():
            assert digest(history.content(object_id)) == object_id


def test_a_history_with_renames_links_programs_and_empty_files(folder: Path) -> None:
    with GitRepository(folder) as git:
        git.commit({b"a.txt": b"one", b"dir/sub/b": b"two", b"empty": b""})
        git.commit(
            {
                b"renamed.txt": b"one",
                b"dir/sub/b": b"two!",
                b"empty": b"",
                b"dir/run": (EXECUTABLE, b"#!/bin/sh\n"),
                b"link": (LINK, b"dir/run"),
                b"vendored": (SUBMODULE, b"1" * 40),
            }
        )
    with GitHistory.open(folder, branch="trunk") as history:
        assert_valid(history)
        assert history.git_commits == len(history.parents) == 2
        commit, snapshot = history.read(history.head)
    assert snapshot["manifest"] == {
        "renamed.txt": digest(b"one"),
        "dir/sub/b": digest(b"two!"),
        "empty": digest(b""),
        "dir/run": digest(b"#!/bin/sh\n"),
        "link": digest(b"dir/run"),
    }
    git_metadata = commit["metadata"]["git"]
    assert git_metadata["modes"] == {"dir/run": "100755", "link": "120000"}
    assert git_metadata["submodules"] == {"vendored": "1" * 40}
    assert git_metadata["commit"] == history.git_id(history.head)
    assert (commit["branch"], commit["author"]) == ("trunk", "Ada <ada@example.org>")
    assert commit["committed_at"] == "2023-11-14T22:15:20+00:00"
    assert set(commit) == set(make_history(1, commits=1).head.record)


def test_a_merge_keeps_both_parents_and_the_first_one_first(folder: Path) -> None:
    with GitRepository(folder) as git:
        base = git.commit({b"a": b"0"})
        main = git.commit({b"a": b"1"}, parents=[base])
        side = git.commit({b"a": b"0", b"b": b"2"}, parents=[base])
        git.commit({b"a": b"1", b"b": b"2"}, parents=[main, side])
    with GitHistory.open(folder) as history:
        assert_valid(history)
        parents = history.parents[history.head]
        assert [history.git_id(parent).encode() for parent in parents] == [main, side]


def test_an_octopus_merge_becomes_a_chain_that_loses_no_history(folder: Path) -> None:
    with GitRepository(folder) as git:
        base = git.commit({b"a": b"0"})
        arms = [git.commit({b"a": b"%d" % n}, parents=[base]) for n in range(1, 5)]
        git.commit({b"a": b"9"}, parents=arms)
    with GitHistory.open(folder) as history:
        assert_valid(history)
        assert (history.git_commits, len(history.parents)) == (6, 8)
        octopus, chain, commit_id = [], [], history.head
        while len(history.parents[commit_id]) == 2:
            octopus.append(history.read(commit_id)[0]["metadata"]["git"]["octopus"])
            commit_id, other = history.parents[commit_id]
            chain.append(history.git_id(other).encode())
        assert octopus == ["3 of 3", "2 of 3", "1 of 3"]
        assert [history.git_id(commit_id).encode(), *reversed(chain)] == arms


def test_bytes_that_are_not_text_survive(folder: Path) -> None:
    with GitRepository(folder) as git:
        git.commit(
            {b"caf\xe9/\xff": b"x", "caf\u00e9".encode(): b"y"},
            message=b"not utf-8: \xff\n",
            author=b"J\xf6rg <j@example.org>",
        )
        git.commit({b"a": b"x"}, message="G\u00fcnther".encode("latin-1"), encoding=b"ISO-8859-1")
    with GitHistory.open(folder) as history:
        assert_valid(history)
        (first, _) = history.parents
        commit, snapshot = history.read(first)
        assert len(snapshot["manifest"]) == 2
        assert commit["author"] == "J\uf7f6rg <j@example.org>"
        named, _snapshot = history.read(history.head)
        assert named["message"] == "G\u00fcnther"
        assert named["metadata"]["git"]["encoding"] == "ISO-8859-1"


@pytest.mark.parametrize("seconds", [0, -(10**14), 10**14], ids=["epoch", "far past", "far off"])
def test_impossible_times_are_moved_inside_the_calendar(folder: Path, seconds: int) -> None:
    with GitRepository(folder) as git:
        git.commit({b"a": b"x"}, commit_time=seconds)
    with GitHistory.open(folder) as history:
        assert_valid(history)


def test_git_commits_that_differ_only_in_the_author_become_one(folder: Path) -> None:
    with GitRepository(folder) as git:
        base = git.commit({b"a": b"0"})
        twins = [
            git.commit({b"a": b"1"}, parents=[base], author=name, commit_time=1_700_000_999)
            for name in (b"A <a@b>", b"B <b@b>")
        ]
        git.commit({b"a": b"2"}, parents=twins)
    with GitHistory.open(folder) as history:
        assert_valid(history)
        assert (history.git_commits, len(history.parents)) == (4, 3)


def test_the_same_repository_gives_the_same_history(folder: Path) -> None:
    with GitRepository(folder) as git:
        for number in range(5):
            git.commit({b"a": b"%d" % number, b"d/b": b"same"})
    with GitHistory.open(folder) as first, GitHistory.open(folder) as second:
        assert list(first.parents.items()) == list(second.parents.items())
        assert [first.read(c) for c in first.parents] == [second.read(c) for c in second.parents]


def test_commits_max_keeps_the_newest_and_cuts_the_rest(folder: Path) -> None:
    with GitRepository(folder) as git:
        made = [git.commit({b"a": b"%d" % number}) for number in range(5)]
    with GitHistory.open(folder, commits_max=2) as history:
        assert_valid(history)
        assert [history.git_id(commit_id).encode() for commit_id in history.parents] == made[3:]


def test_a_history_with_a_hole_lets_go_of_the_repository(folder: Path) -> None:
    with GitRepository(folder) as git:
        git.commit({b"a": b"x"}, parents=[ObjectID(b"2" * 40)])
        git.repo.object_store.pack_loose_objects()
    with pytest.raises(GitObjectMissing):
        GitHistory.open(folder)
    held = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    assert not [path for path in held if path.is_relative_to(folder)]


def test_a_shallow_boundary_is_a_root(folder: Path) -> None:
    with GitRepository(folder) as git:
        boundary = git.commit({b"a": b"x"}, parents=[ObjectID(b"2" * 40)])
        git.commit({b"a": b"y"})
        with pytest.raises(GitObjectMissing):
            GitHistory.open(folder)
        (folder / ".git" / "shallow").write_bytes(boundary + b"\n")
    with GitHistory.open(folder) as history:
        assert_valid(history)
        assert len(history.parents) == 2


def test_what_is_not_there_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(GitRepositoryMissing):
        GitHistory.open("/")
    with GitRepository(folder) as git:
        with pytest.raises(GitHistoryEmpty):
            GitHistory.open(folder)
        git.commit({b"a": b"x"})
    with pytest.raises(NotFound):
        GitHistory.open(folder, revision="no-such-branch")
    with pytest.raises(InvalidRequest):
        GitHistory.open(folder, commits_max=0)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git itself")
def test_packed_repositories_and_worktrees_read_the_same(folder: Path, tmp_path: Path) -> None:
    with GitRepository(folder) as git:
        for number in range(30):
            git.commit({b"a": b"%d\n" % number * 100, b"d/b": b"same"})
    with GitHistory.open(folder) as loose:
        expected = list(loose.parents.items())
    worktree = tmp_path / "worktree"
    for command in (["gc", "-q"], ["worktree", "add", "-q", "--detach", str(worktree)]):
        subprocess.run(["git", "-C", str(folder), *command], check=True, capture_output=True)
    assert (worktree / ".git").is_file()
    for place in (folder, worktree, worktree / "d"):
        with GitHistory.open(place) as history:
            assert list(history.parents.items()) == expected
            assert_valid(history)
