"""Reads a Git repository as a Muse history: commits, snapshots, objects, deterministically.

The same repository always gives the same ids. What Git has and the protocol has not:

- **Modes.** A manifest maps paths to contents alone. Whatever is not a plain 0644 file is listed
  in the commit's metadata: `{"git": {"modes": {path: "100755" | "120000" | …}}}`. A symbolic
  link's content is its target. Checking out (`gateway.client.checkout`) restores both.
- **Submodules** are not contents: left out of the manifest, listed in `{"git": {"submodules":
  {path: commit}}}`.
- **More than two parents.** A commit has two at most. An octopus merge of n parents becomes a
  chain of n - 1 merges with the same snapshot, message and time, so that no history is lost; the
  inner ones carry `{"git": {"octopus": "1 of 3"}}`.
- **Bytes that are not UTF-8**, and NUL: see `gateway.git_text`. A message whose commit names
  another encoding is decoded with it; the name is kept in `{"git": {"encoding": …}}`.
- **Times.** `committed_at` is the committer's time in UTC; the author's time and both offsets are
  in the metadata. A time outside the years 1 to 9999 is moved to the nearest one inside.
- **The commit's id** covers parents, snapshot, message and time. Two Git commits that agree in all
  of these (they differ in the author or in modes alone) become one, the first one met.

A shallow clone's boundary commits become roots; so do those at the edge of `commits_max`. Empty
folders do not exist in Git, and empty files are files like any other.

Memory: one manifest at a time, a bounded cache of folders, and per commit and per blob the ids.
"""

from __future__ import annotations

import codecs
import hashlib
import heapq
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from gateway.git_text import to_text
from gateway.wire.commit_record import unfilled_fields
from gateway.wire.ids import commit_id_of, snapshot_id_of
from leases.errors import Corrupt, InvalidRequest, NotFound

if TYPE_CHECKING:
    from dulwich.objects import Blob, Commit, ObjectID, Tree
    from dulwich.repo import Repo

_MODE_FILE = 0o100644
_MODE_FOLDER = 0o040000
_MODE_SUBMODULE = 0o160000
_FOLDERS_CACHED_ENTRIES_MAX = 400_000  # About 100 MB of folder listings.
_DEPTH_MAX = 300  # Folders in folders; two calls each, below the interpreter's own limit.
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECONDS_MIN = -62_135_596_800  # The year 1.
_SECONDS_MAX = 253_402_300_799  # The end of 9999.

Record = dict[str, Any]


class GitRepositoryMissing(NotFound):
    """There is no Git repository here."""

    code = "git_repository_missing"


class GitHistoryEmpty(InvalidRequest):
    """The Git repository has no commits."""

    code = "git_history_empty"


class GitObjectMissing(Corrupt):
    """The Git repository lacks an object it refers to (is it a partial clone?)."""

    code = "git_object_missing"


@dataclass(frozen=True, slots=True)
class _Planned:
    """A commit of ours: the Git commit it stands for, and what its id was made of."""

    git_id: ObjectID
    parents: tuple[str, ...]
    snapshot_id: str
    octopus: str | None


@dataclass(slots=True)
class _Folder:
    """A folder's files below it, by path; links, programs and submodules apart."""

    manifest: dict[str, str] = field(default_factory=dict)
    modes: dict[str, str] = field(default_factory=dict)
    submodules: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return len(self.manifest) + len(self.submodules)


class GitHistory:
    """One line of history, oldest first; what `gateway.client` pushes.

    Shapes:  head: a commit id; parents: every commit id, parents before children, with the parents
             that are here too. `read` and `content` go back to Git each time.
    """

    def __init__(self, repo: Repo, head: ObjectID, *, branch: str, commits_max: int | None) -> None:
        self._repo = repo
        self._branch = branch
        self._blobs: dict[bytes, bytes] = {}  # Git's blob id -> SHA-256, both raw.
        self._places: dict[bytes, bytes] = {}  # And back.
        self._folders = _FolderCache(self)
        self._planned: dict[str, _Planned] = {}
        self._by_git_id: dict[ObjectID, str] = {}
        self.git_head = head.decode()
        self.git_commits = 0
        graph = _graph(repo, head, commits_max)
        for git_id in _parents_first(graph, head):
            self._plan(git_id, graph[git_id])
            self.git_commits += 1
        self.head = self._by_git_id[head]
        self.parents: Mapping[str, tuple[str, ...]] = {
            commit_id: planned.parents for commit_id, planned in self._planned.items()
        }

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        revision: str = "HEAD",
        branch: str = "main",
        commits_max: int | None = None,
    ) -> GitHistory:
        """Read the ids of a history: every blob once, nothing kept of its bytes.

        Errors: GitRepositoryMissing, GitHistoryEmpty, NotFound for the revision, GitObjectMissing.
        """
        from dulwich.errors import NotGitRepository
        from dulwich.objectspec import parse_commit
        from dulwich.repo import Repo

        if commits_max is not None and commits_max < 1:
            raise InvalidRequest("At least one commit is needed.", commits_max=commits_max)
        try:
            repo = Repo.discover(str(path))
        except NotGitRepository as error:
            raise GitRepositoryMissing(path=str(path)) from error
        with ExitStack() as opening:
            opening.callback(repo.close)
            try:
                head = parse_commit(repo, revision).id
            except (KeyError, ValueError) as error:
                if revision == "HEAD":
                    raise GitHistoryEmpty(path=str(path)) from error
                raise NotFound("Git knows no such revision.", revision=revision) from error
            history = cls(repo, head, branch=branch, commits_max=commits_max)
            opening.pop_all()
        return history

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the repository's files."""
        self._repo.close()

    def git_id(self, commit_id: str) -> str:
        """The Git commit that this commit stands for."""
        return self._planned[commit_id].git_id.decode()

    def read(self, commit_id: str) -> tuple[Record, Record]:
        """The commit's record, with every key the protocol has, and its snapshot's."""
        planned = self._planned[commit_id]
        commit = self._commit(planned.git_id)
        folder = self._folders.whole(commit.tree)
        record = _commit_record(commit, planned, folder)
        record |= {"commit_id": commit_id, "branch": self._branch}
        snapshot = {
            "snapshot_id": planned.snapshot_id,
            "manifest": folder.manifest,
            "created_at": record["committed_at"],
        }
        return record, snapshot

    def content(self, object_id: str) -> bytes:
        """The bytes of a file."""
        return self._blob(self._places[bytes.fromhex(object_id)].hex().encode()).data

    def object_id_of(self, git_blob_id: ObjectID) -> str:
        """The SHA-256 of a Git blob; each is read for this once."""
        raw = bytes.fromhex(git_blob_id.decode())
        digest = self._blobs.get(raw)
        if digest is None:
            digest = hashlib.sha256(self._blob(git_blob_id).data).digest()
            self._blobs[raw] = digest
            self._places.setdefault(digest, raw)
        return digest.hex()

    def tree(self, git_tree_id: ObjectID) -> Tree:
        """A folder as Git has it."""
        tree: Tree = _object(self._repo, git_tree_id)
        return tree

    def _plan(self, git_id: ObjectID, git_parents: tuple[ObjectID, ...]) -> None:
        commit = self._commit(git_id)
        snapshot_id = snapshot_id_of(self._folders.whole(commit.tree).manifest)
        # Two Git commits may have become one of ours, hence no parent twice.
        parents = list(dict.fromkeys(self._by_git_id[parent] for parent in git_parents))
        merges = max(1, len(parents) - 1)
        first = parents[:1]
        for number in range(1, merges + 1):
            ours = (*first, *parents[number : number + 1])
            commit_id = commit_id_of(
                ours,
                snapshot_id,
                message=_message(commit)[0],
                committed_at=_instant(commit.commit_time),
            )
            octopus = f"{number} of {merges}" if merges > 1 else None
            self._planned.setdefault(commit_id, _Planned(git_id, ours, snapshot_id, octopus))
            first = [commit_id]
        self._by_git_id[git_id] = first[0]

    def _commit(self, git_id: ObjectID) -> Commit:
        commit: Commit = _object(self._repo, git_id)
        return commit

    def _blob(self, git_id: bytes) -> Blob:
        blob: Blob = _object(self._repo, git_id)
        return blob


class _FolderCache:
    """Folders already read, so that what a commit did not touch is not walked again."""

    def __init__(self, history: GitHistory) -> None:
        self._history = history
        self._cached: OrderedDict[bytes, _Folder] = OrderedDict()
        self._entries = 0

    def whole(self, tree_id: ObjectID) -> _Folder:
        """The files of a commit's top folder; not cached itself, for it changes every time."""
        return self._read(tree_id, depth=0)

    def _get(self, tree_id: ObjectID, depth: int) -> _Folder:
        folder = self._cached.get(tree_id)
        if folder is not None:
            self._cached.move_to_end(tree_id)
            return folder
        folder = self._read(tree_id, depth)
        self._cached[tree_id] = folder
        self._entries += folder.size
        while self._entries > _FOLDERS_CACHED_ENTRIES_MAX and len(self._cached) > 1:
            self._entries -= self._cached.popitem(last=False)[1].size
        return folder

    def _read(self, tree_id: ObjectID, depth: int) -> _Folder:
        if depth > _DEPTH_MAX:
            raise InvalidRequest("The folders of this repository are nested too deep.")
        folder = _Folder()
        for name, mode, git_id in self._history.tree(tree_id).iteritems():
            path = to_text(name)
            if mode & 0o170000 == _MODE_FOLDER:
                _graft(folder, path, self._get(git_id, depth + 1))
            elif mode == _MODE_SUBMODULE:
                folder.submodules[path] = git_id.decode()
            else:
                folder.manifest[path] = self._history.object_id_of(git_id)
                if mode != _MODE_FILE:
                    folder.modes[path] = f"{mode:06o}"
        return folder


def _graft(folder: _Folder, name: str, inner: _Folder) -> None:
    for path, object_id in inner.manifest.items():
        folder.manifest[f"{name}/{path}"] = object_id
    for path, mode in inner.modes.items():
        folder.modes[f"{name}/{path}"] = mode
    for path, git_id in inner.submodules.items():
        folder.submodules[f"{name}/{path}"] = git_id


def _graph(
    repo: Repo, head: ObjectID, commits_max: int | None
) -> dict[ObjectID, tuple[ObjectID, ...]]:
    """The newest commits that the head reaches, with the parents that are among them."""
    shallow = set(repo.get_shallow())
    found: dict[ObjectID, tuple[ObjectID, ...]] = {}
    waiting = [(0, head)]
    seen = {head}
    while waiting and (commits_max is None or len(found) < commits_max):
        _age, git_id = heapq.heappop(waiting)
        parents = () if git_id in shallow else tuple(_object(repo, git_id).parents)
        found[git_id] = parents
        for parent in parents:
            if parent not in seen:
                seen.add(parent)
                heapq.heappush(waiting, (-int(_object(repo, parent).commit_time), parent))
    return {
        git_id: tuple(parent for parent in parents if parent in found)
        for git_id, parents in found.items()
    }


def _object(repo: Repo, git_id: bytes) -> Any:
    try:
        return repo.object_store[git_id]  # type: ignore[index]  # ObjectID is bytes
    except KeyError as error:
        raise GitObjectMissing(git_id=git_id.decode()) from error


def _parents_first(
    graph: Mapping[ObjectID, tuple[ObjectID, ...]], head: ObjectID
) -> Iterator[ObjectID]:
    """Every commit after its parents, first parents first."""
    seen = {head}
    stack = [(head, iter(graph[head]))]
    while stack:
        git_id, rest = stack[-1]
        parent = next((p for p in rest if p not in seen), None)
        if parent is not None:
            seen.add(parent)
            stack.append((parent, iter(graph[parent])))
            continue
        stack.pop()
        yield git_id


def _commit_record(commit: Commit, planned: _Planned, folder: _Folder) -> Record:
    message, encoding = _message(commit)
    git: Record = {"commit": planned.git_id.decode()}
    optional = {
        "octopus": planned.octopus,
        "encoding": encoding,
        "modes": folder.modes,
        "submodules": folder.submodules,
    }
    git |= {key: value for key, value in optional.items() if value}
    git["authored_at"] = _instant(commit.author_time)
    git["utc_offsets"] = [int(commit.author_timezone), int(commit.commit_timezone)]
    if commit.committer != commit.author:
        git["committer"] = to_text(commit.committer)
    parents = [*planned.parents, None, None]
    return {
        "commit_id": "",
        "repo_id": "",
        "branch": "",
        "snapshot_id": planned.snapshot_id,
        "message": message,
        "committed_at": _instant(commit.commit_time),
        "parent_commit_id": parents[0],
        "parent2_commit_id": parents[1],
        "author": to_text(commit.author),
        "metadata": {"git": git},
        **unfilled_fields(),
    }


def _message(commit: Commit) -> tuple[str, str | None]:
    """The message, and the encoding's name when it was not UTF-8 and could be used."""
    data = commit.message or b""
    name = (commit.encoding or b"").decode("ascii", "replace")
    if name and name.lower().replace("_", "-") not in ("utf-8", "utf8"):
        try:
            text = data.decode(codecs.lookup(name).name)
            if text.encode(name) == data:
                return to_text(text.encode()), name
        except (LookupError, UnicodeError):
            pass
    return to_text(data), None


def _instant(seconds: int) -> str:
    """The time as the protocol's text."""
    inside = min(max(int(seconds), _SECONDS_MIN), _SECONDS_MAX)
    return (_EPOCH + timedelta(seconds=inside)).isoformat()
