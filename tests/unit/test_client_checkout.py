"""Checking out writes the commit's files, and nothing outside the folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgpack
import pytest

from gateway.client import CheckoutRefused, Pack, checkout, files_of, unpack
from gateway.git_import import GitHistory
from tests.factories import History
from tests.git_repositories import EXECUTABLE, LINK, GitRepository


def pack_of(history: Any, folder: Path, *, without_objects: bool = False) -> Pack:
    """A pack of everything a history has."""
    pairs = [history.read(commit_id) for commit_id in history.parents]
    snapshots = {snapshot["snapshot_id"]: snapshot for _commit, snapshot in pairs}
    object_ids = {oid for s in snapshots.values() for oid in s["manifest"].values()}
    pack = {
        "version": 1,
        "commits": [commit for commit, _snapshot in pairs],
        "snapshots": list(snapshots.values()),
        "objects": [
            {"object_id": oid, "content": history.content(oid)} for oid in sorted(object_ids)
        ],
    }
    if without_objects:
        pack["objects"] = []
    path = folder / "pack"
    path.write_bytes(msgpack.packb(pack))
    return unpack(path)


def hostile(manifest_path: str, folder: Path, *, mode: str | None = None, also: str = "") -> Any:
    history = History()
    oid = history.content(b"/etc")
    manifest = {manifest_path: oid} | ({also: oid} if also else {})
    git = {"modes": {manifest_path: mode}} if mode else {}
    made = history.commit(manifest, metadata={"git": git})
    path = folder / "hostile"
    bundle = history.bundle()
    path.write_bytes(msgpack.packb({"version": 1, **bundle, "objects": history.objects()}))
    return unpack(path), made.commit_id


def test_links_programs_and_strange_names_come_back_from_git(tmp_path: Path) -> None:
    files: dict[bytes, Any] = {
        b"a.txt": b"one",
        b"empty": b"",
        b"dir/run": (EXECUTABLE, b"#!/bin/sh\n"),
        b"dir/link": (LINK, b"../a.txt"),
        b"dangling": (LINK, b"no/wh\xe9re"),
        b"caf\xe9/\xf0": b"bytes",
    }
    with GitRepository(tmp_path / "git") as git:
        git.commit(files)
    out = tmp_path / "out"
    with GitHistory.open(tmp_path / "git") as history, pack_of(history, tmp_path) as pack:
        assert checkout(pack, history.head, out) == len(files)
    for path, entry in files.items():
        mode, content = entry if isinstance(entry, tuple) else (0o100644, entry)
        place = out / os.fsdecode(path)
        if mode == LINK:
            assert os.fsencode(place.readlink()) == content
        else:
            assert place.read_bytes() == content
            assert bool(place.stat().st_mode & 0o100) == (mode == EXECUTABLE)
    assert sum(len(names) for _, _, names in os.walk(out)) == len(files)


@pytest.mark.parametrize(
    "path",
    [
        "/etc/x",
        "../x",
        "a/../../x",
        "a//b",
        "./a",
        "a/",
        "",
        ".git/hooks/x",
        "a/.GIT/x",
        "x" * 5000,
    ],
)
def test_a_path_that_leads_elsewhere_is_refused(tmp_path: Path, path: str) -> None:
    pack, commit_id = hostile(path, tmp_path)
    with pack, pytest.raises(CheckoutRefused):
        checkout(pack, commit_id, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    """A link named `a` beside a file `a/b` would put `b` where the link points."""
    pack, commit_id = hostile("a", tmp_path, mode="120000", also="a/b")
    with pack, pytest.raises(CheckoutRefused):
        checkout(pack, commit_id, tmp_path / "out")


def test_a_link_with_an_impossible_target_is_refused(tmp_path: Path) -> None:
    history = History()
    made = history.commit(
        {"a": history.content(b"x\0y")}, metadata={"git": {"modes": {"a": "120000"}}}
    )
    path = tmp_path / "pack"
    path.write_bytes(
        msgpack.packb({"version": 1, **history.bundle(), "objects": history.objects()})
    )
    with unpack(path) as pack, pytest.raises(CheckoutRefused):
        checkout(pack, made.commit_id, tmp_path / "out")


def test_the_folder_must_be_empty(tmp_path: Path) -> None:
    pack, commit_id = hostile("a", tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pack, pytest.raises(CheckoutRefused, match="not empty"):
        checkout(pack, commit_id, tmp_path / "out")


def test_a_thin_pack_needs_the_earlier_one(tmp_path: Path) -> None:
    with GitRepository(tmp_path / "git") as git:
        git.commit({b"a": b"one"})
    (tmp_path / "thin").mkdir()
    with (
        GitHistory.open(tmp_path / "git") as history,
        pack_of(history, tmp_path) as whole,
        pack_of(history, tmp_path / "thin", without_objects=True) as thin,
    ):
        with pytest.raises(CheckoutRefused, match="earlier pack"):
            checkout(thin, history.head, tmp_path / "out")
        assert checkout([thin, whole], history.head, tmp_path / "out") == 1
        with pytest.raises(CheckoutRefused):
            files_of(thin, "f" * 64)
