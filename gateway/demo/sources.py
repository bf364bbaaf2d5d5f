"""The Git history that is shown, and what Git itself says about the files of its head."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.git_import import GitHistory, GitHistoryEmpty, GitRepositoryMissing

if TYPE_CHECKING:
    from dulwich.objects import ObjectID
    from dulwich.repo import Repo

COMMITS_MAX = 2000  # Enough to be real; a longer history would take the whole minute.
_PLAIN, _EXECUTABLE, _LINK, _SUBMODULE = 0o100644, 0o100755, 0o120000, 0o160000
_FIRST_COMMIT_AT = 1_767_225_600  # 2026-01-01: the same history, the same ids, every time.
_MADE_COMMITS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A Git repository to show, opened; `why_made` says why it is not the one asked for."""

    path: Path
    history: GitHistory
    why_made: str | None


def open_source(wanted: Path, scratch: Path) -> Source:
    """The repository asked for, or a small one made on the spot when there is no history there."""
    try:
        history = GitHistory.open(wanted, commits_max=COMMITS_MAX)
        return Source(path=wanted, history=history, why_made=None)
    except GitRepositoryMissing:
        why = f"{wanted} is no Git repository"
    except GitHistoryEmpty:
        why = f"{wanted} has no commits yet"
    made = scratch / "repository"
    make_repository(made)
    return Source(path=made, history=GitHistory.open(made), why_made=why)


@dataclass(frozen=True, slots=True, kw_only=True)
class GitFile:
    """A file as Git stores it."""

    mode: int
    content: bytes


def files_by_git(path: Path, commit: str) -> tuple[str, dict[bytes, GitFile]]:
    """Every file of a commit, read by `git` where there is one, and who read it."""
    if shutil.which("git") is None:
        return "dulwich", _files_by_dulwich(path, commit)
    listed = _git(path, "ls-tree", "-r", "-z", "--full-tree", commit)
    entries: list[tuple[bytes, int, bytes]] = []
    for line in listed.split(b"\0")[:-1]:
        about, _, name = line.partition(b"\t")
        mode, kind, blob_id = about.split(b" ")[:3]
        if kind == b"blob":
            entries.append((name, int(mode, 8), blob_id))
    contents = _contents_by_git(path, [blob_id for _name, _mode, blob_id in entries])
    return "git", {
        name: GitFile(mode=mode, content=contents[blob_id]) for name, mode, blob_id in entries
    }


def _contents_by_git(path: Path, blob_ids: Sequence[bytes]) -> dict[bytes, bytes]:
    wanted = list(dict.fromkeys(blob_ids))
    told = _git(path, "cat-file", "--batch", stdin=b"".join(b"%s\n" % one for one in wanted))
    contents, at = {}, 0
    for blob_id in wanted:
        end = told.index(b"\n", at)
        length = int(told[at:end].split(b" ")[2])
        contents[blob_id] = told[end + 1 : end + 1 + length]
        at = end + 1 + length + 1
    return contents


def _git(path: Path, *words: str, stdin: bytes = b"") -> bytes:
    # A checkout that belongs to somebody else is only read here, so Git's guard is in the way.
    command = ["git", "-c", "safe.directory=*", "-C", str(path), *words]
    return subprocess.run(command, input=stdin, stdout=subprocess.PIPE, check=True).stdout


def _files_by_dulwich(path: Path, commit: str) -> dict[bytes, GitFile]:
    from dulwich.object_store import iter_tree_contents
    from dulwich.objects import Blob, Commit, ObjectID
    from dulwich.repo import Repo

    with Repo.discover(str(path)) as repo:
        head = repo[ObjectID(commit.encode())]
        assert isinstance(head, Commit)
        files = {}
        for entry in iter_tree_contents(repo.object_store, head.tree):
            assert entry.path is not None
            assert entry.mode is not None
            assert entry.sha is not None
            if entry.mode != _SUBMODULE:
                blob = repo[entry.sha]
                assert isinstance(blob, Blob)
                files[entry.path] = GitFile(mode=entry.mode, content=blob.data)
        return files


def differences(folder: Path, files: Mapping[bytes, GitFile]) -> list[str]:
    """What in a folder is not exactly these files: contents, links, modes, and nothing else."""
    found = {
        os.path.relpath(os.path.join(top, name), os.fsencode(folder))  # noqa: PTH118  bytes
        for top, folders, names in os.walk(os.fsencode(folder))
        for name in [*names, *(f for f in folders if os.path.islink(os.path.join(top, f)))]  # noqa: PTH114, PTH118
    }
    wrong = [f"missing: {path!r}" for path in files.keys() - found]
    wrong += [f"not in Git: {path!r}" for path in found - files.keys()]
    for path in found & files.keys():
        place, file = folder / os.fsdecode(path), files[path]
        mode = place.lstat().st_mode
        if file.mode == _LINK:
            same = stat.S_ISLNK(mode) and os.fsencode(place.readlink()) == file.content
        else:
            runs = bool(mode & stat.S_IXUSR)
            same = stat.S_ISREG(mode) and runs == bool(file.mode & stat.S_IXUSR)
            same = same and place.read_bytes() == file.content
        if not same:
            wrong.append(f"differs: {path!r}")
    return wrong


def make_repository(path: Path) -> None:
    """A small history with what real ones have: a merge, a link, a program, an empty file."""
    from dulwich.refs import Ref
    from dulwich.repo import Repo

    main = Ref(b"refs/heads/main")
    with Repo.init(str(path), mkdir=True) as repo:
        repo.refs.set_symbolic_ref(Ref(b"HEAD"), main)
        head: ObjectID | None = None
        side: ObjectID | None = None
        for number in range(_MADE_COMMITS):
            parents = [head] if head is not None else []
            if number == _MADE_COMMITS // 2:
                side = _made_commit(repo, parents, number=number, text=b"a side branch")
                continue
            if number == _MADE_COMMITS // 2 + 3 and side is not None:
                parents.append(side)
            head = _made_commit(repo, parents, number=number, text=b"step %d" % number)
        assert head is not None
        repo.refs[main] = head


def _made_commit(repo: Repo, parents: list[ObjectID], *, number: int, text: bytes) -> ObjectID:
    from dulwich.objects import Blob, Commit, Tree

    def blob(content: bytes) -> ObjectID:
        made = Blob.from_string(content)
        repo.object_store.add_object(made)
        return made.id

    notes = Tree()
    for page in range(number % 20 + 1):
        notes.add(b"page-%02d.txt" % page, _PLAIN, blob(b"page %d, %s\n" % (page, text) * 200))
    top = Tree()
    top.add(b"README.md", _PLAIN, blob(b"# A small history\n\n" + text + b"\n"))
    top.add(b"empty", _PLAIN, blob(b""))
    top.add(b"link", _LINK, blob(b"notes/page-00.txt"))
    top.add(b"notes", 0o040000, notes.id)
    top.add(b"run.sh", _EXECUTABLE, blob(b"#!/bin/sh\necho '" + text + b"'\n"))
    commit = Commit()
    commit.tree, commit.parents = top.id, parents
    commit.author = commit.committer = b"Ada <ada@example.org>"
    commit.author_time = commit.commit_time = _FIRST_COMMIT_AT + 3600 * number
    commit.author_timezone = commit.commit_timezone = 0
    commit.message = text + b"\n"
    for made in (notes, top, commit):
        repo.object_store.add_object(made)
    return commit.id
