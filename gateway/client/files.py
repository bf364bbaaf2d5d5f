"""Writing the files of a commit into a folder, and nothing anywhere else.

A manifest comes from other people. So: no absolute path, no `..`, no `.git`, no path that is both
a file and a folder; the folder must be new or empty; and symbolic links are made last, so that no
file can be written through one.

What Git knows of a file beside its bytes (executable, symbolic link) and of names that are not
UTF-8 is in the commit's metadata, where `gateway.git_import` put it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.client.errors import CheckoutRefused
from gateway.client.pack import Pack
from gateway.git_text import to_bytes

_MODE_LINK = "120000"
_MODE_EXECUTABLE = "100755"
_PATH_BYTES_MAX = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeFile:
    """One file of a commit: its path in bytes, what it holds, and what Git says it is."""

    path: bytes
    object_id: str
    is_link: bool
    is_executable: bool


def files_of(packs: Pack | Sequence[Pack], commit_id: str) -> list[TreeFile]:
    """The files of a commit, by path, every path checked.

    Shapes:  packs: the pack, or several: the newest first, then those it builds on.
    Errors:  CheckoutRefused for an unknown commit or snapshot, or an unsafe path.
    """
    all_packs = _as_list(packs)
    commit = _find(all_packs, commit_id, lambda pack: pack.commits, noun="commit")
    snapshot_id = str(commit.get("snapshot_id") or "").removeprefix("sha256:")
    snapshot = _find(all_packs, snapshot_id, lambda pack: pack.snapshots, noun="snapshot")
    git = (commit.get("metadata") or {}).get("git")
    modes = git.get("modes") if isinstance(git, Mapping) else None
    modes = modes if isinstance(modes, Mapping) else {}
    files = [
        TreeFile(
            path=to_bytes(path) if git is not None else path.encode(),
            object_id=object_id.removeprefix("sha256:"),
            is_link=modes.get(path) == _MODE_LINK,
            is_executable=modes.get(path) == _MODE_EXECUTABLE,
        )
        for path, object_id in snapshot["manifest"].items()
    ]
    files.sort(key=lambda file: file.path)
    _refuse_unsafe([file.path for file in files])
    return files


def checkout(packs: Pack | Sequence[Pack], commit_id: str, folder: Path) -> int:
    """Write the commit's files into a new or empty folder; how many there were.

    Effects: writes below `folder` alone.
    Errors:  CheckoutRefused; nothing is written before all is known to be there and safe.
    """
    all_packs = _as_list(packs)
    files = files_of(all_packs, commit_id.removeprefix("sha256:"))
    absent = [f for f in files if not any(f.object_id in pack.objects for pack in all_packs)]
    if absent:
        message = "The pack does not hold every file (is it a thin one? give the earlier pack too)."
        raise CheckoutRefused(message, missing_count=len(absent), first=absent[0].object_id)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise CheckoutRefused("The folder is not empty.", folder=str(folder))
        for file in sorted(files, key=lambda file: file.is_link):
            place = folder / os.fsdecode(file.path)
            _write(place, file, _content(all_packs, file.object_id))
    except (OSError, ValueError) as error:
        message = f"The files cannot be written: {getattr(error, 'strerror', None) or error}."
        raise CheckoutRefused(message, folder=str(folder)) from error
    return len(files)


def _write(place: Path, file: TreeFile, content: bytes) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    if file.is_link:
        place.symlink_to(os.fsdecode(content))
        return
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    handle = os.open(place, flags, 0o777 if file.is_executable else 0o666)
    with os.fdopen(handle, "wb") as target:
        target.write(content)


def _content(packs: Sequence[Pack], object_id: str) -> bytes:
    return next(pack.content(object_id) for pack in packs if object_id in pack.objects)


def _as_list(packs: Pack | Sequence[Pack]) -> Sequence[Pack]:
    return [packs] if isinstance(packs, Pack) else packs


def _find(
    packs: Sequence[Pack],
    entity_id: str,
    table: Callable[[Pack], Mapping[str, dict[str, Any]]],
    *,
    noun: str,
) -> dict[str, Any]:
    for pack in packs:
        record = table(pack).get(entity_id)
        if record is not None:
            return record
    raise CheckoutRefused(f"The pack does not hold the {noun}.", id=entity_id)


def _refuse_unsafe(paths: Sequence[bytes]) -> None:
    """Every path must stay inside, and none may be the folder of another one."""
    files = set(paths)
    for path in paths:
        parts = path.split(b"/")
        unsafe = any(part in (b"", b".", b"..") or part.lower() == b".git" for part in parts)
        if unsafe or b"\0" in path or len(path) > _PATH_BYTES_MAX:
            raise CheckoutRefused("A path of this commit is not safe to write.", path=_shown(path))
        if any(folder in files for folder in _folders(path)):
            message = "A path of this commit is below another file."
            raise CheckoutRefused(message, path=_shown(path))


def _folders(path: bytes) -> Iterator[bytes]:
    end = path.find(b"/")
    while end != -1:
        yield path[:end]
        end = path.find(b"/", end + 1)


def _shown(path: bytes) -> str:
    return repr(path[:120])[1:]
