"""Git repositories made on the spot, file by file, also such as no `git` would write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dulwich.objects import Blob, Commit, ObjectID, Tree
from dulwich.refs import Ref
from dulwich.repo import Repo

_MAIN = Ref(b"refs/heads/main")
Entry = bytes | tuple[int, bytes]  # A content, or a mode and a content.
PLAIN, EXECUTABLE, LINK, FOLDER, SUBMODULE = 0o100644, 0o100755, 0o120000, 0o040000, 0o160000


class GitRepository:
    """A repository with one branch, `main`, that every commit moves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repo = Repo.init(str(folder), mkdir=not folder.exists())
        self.repo.refs.set_symbolic_ref(Ref(b"HEAD"), _MAIN)
        self._time = 1_700_000_000

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.repo.close()

    def commit(
        self,
        files: Mapping[bytes, Entry],
        *,
        parents: Sequence[ObjectID] | None = None,
        message: bytes = b"a change\n",
        **fields: Any,
    ) -> ObjectID:
        """One commit on top of the branch (or of these parents), which moves there."""
        commit = Commit()
        commit.tree = self._tree(files)
        if parents is None:
            tip = self.repo.refs.follow(_MAIN)[1]
            parents = [tip] if tip is not None else []
        commit.parents = list(parents)
        commit.author = commit.committer = b"Ada <ada@example.org>"
        self._time += 60
        commit.author_time = commit.commit_time = self._time
        commit.author_timezone = commit.commit_timezone = 7200
        commit.message = message
        for name, value in fields.items():
            setattr(commit, name, value)
        self.repo.object_store.add_object(commit)
        self.repo.refs[_MAIN] = commit.id
        return commit.id

    def _tree(self, files: Mapping[bytes, Entry]) -> ObjectID:
        tree = Tree()
        folders: dict[bytes, dict[bytes, Entry]] = {}
        for path, entry in files.items():
            folder, slash, rest = path.partition(b"/")
            if slash:
                folders.setdefault(folder, {})[rest] = entry
                continue
            mode, content = entry if isinstance(entry, tuple) else (PLAIN, entry)
            if mode == SUBMODULE:
                tree.add(path, mode, ObjectID(content))
                continue
            blob = Blob.from_string(content)
            self.repo.object_store.add_object(blob)
            tree.add(path, mode, blob.id)
        for folder, inner in folders.items():
            tree.add(folder, FOLDER, self._tree(inner))
        self.repo.object_store.add_object(tree)
        return tree.id
