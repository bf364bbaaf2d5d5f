"""Packs are read as if they came from an enemy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from gateway.client import BadPack, Limits, TooBig, unpack
from gateway.wire.ids import IdForm
from tests.factories import History, make_history


def packed(history: History, **changes: Any) -> bytes:
    bundle = history.bundle()
    pack = {
        "version": 1,
        "commits": bundle["commits"],
        "snapshots": bundle["snapshots"],
        "objects": history.objects(),
    }
    return bytes(msgpack.packb(pack | changes))


@pytest.fixture
def file(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(data: bytes) -> Path:
        path = tmp_path / "pack"
        path.write_bytes(data)
        return path

    return write


@pytest.mark.parametrize("form", list(IdForm))
@pytest.mark.parametrize("compress", [bytes, zstandard.ZstdCompressor().compress])
def test_a_pack_gives_back_what_went_in(
    file: Callable[[bytes], Path], form: IdForm, compress: Callable[[bytes], bytes]
) -> None:
    history = make_history(1, form=form, size_bytes=3000)
    history.content(b"")
    with unpack(file(compress(packed(history)))) as pack:
        assert set(pack.commits) == set(history.commits)
        assert {oid: pack.content(oid) for oid in pack.objects} == history.contents
        for commit_id, commit in history.commits.items():
            assert pack.commits[commit_id] == commit.record
            assert commit.snapshot_id in pack.snapshots


def test_unknown_keys_are_passed_over(file: Callable[[bytes], Path]) -> None:
    history = make_history(2)
    with unpack(file(packed(history, branch_heads={"main": "x"}, later=[{"a": [1]}]))) as pack:
        assert set(pack.commits) == set(history.commits)


def _changed(change: Callable[[dict[str, Any]], None]) -> bytes:
    pack = msgpack.unpackb(packed(make_history(3)))
    change(pack)
    return bytes(msgpack.packb(pack))


HOSTILE = {
    "empty": b"",
    "no map": b"\x93\x01\x02\x03",
    "no msgpack": b"<html>not found</html>",
    "cut": packed(make_history(3))[:-5],
    "bytes behind": packed(make_history(3)) + b"\0",
    "a list of billions": b"\x81\xa1x\xdd\xff\xff\xff\xff",
    "billions of commits": b"\x81\xa7commits\xdd\xff\xff\xff\xff",
    "a key of billions": b"\x81\xdd\xff\xff\xff\xff",
    "a key that is a list": b"\x81\xa7objects\x91\x81\xa1x\x81\x90\x01",
    "an empty map": b"\x80",
    "deep": b"\x81\xa7commits\x91" + b"\x91" * 100_000,
    "broken zstd": zstandard.ZstdCompressor().compress(packed(make_history(3)))[:40] + b"\0" * 40,
    "other version": _changed(lambda p: p.update(version=2)),
    "wrong content": _changed(lambda p: p["objects"][0].update(content=b"!")),
    "content is text": _changed(lambda p: p["objects"][0].update(content="!")),
    "object without id": _changed(lambda p: p["objects"][0].pop("object_id")),
    "object is a list": _changed(lambda p: p["objects"].append([1])),
    "wrong message": _changed(lambda p: p["commits"][0].update(message="!")),
    "commit id is no id": _changed(lambda p: p["commits"][0].update(commit_id="../../etc")),
    "wrong parent": _changed(lambda p: p["commits"][0].update(parent_commit_id="a" * 64)),
    "commit without snapshot": _changed(lambda p: p["commits"][0].pop("snapshot_id")),
    "metadata is a list": _changed(lambda p: p["commits"][0].update(metadata=[1])),
    "wrong manifest": _changed(lambda p: p["snapshots"][0]["manifest"].update({"x": "a" * 64})),
    "manifest is a list": _changed(lambda p: p["snapshots"][0].update(manifest=[])),
    "manifest of numbers": _changed(lambda p: p["snapshots"][0].update(manifest={"x": 1})),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_bad_pack_is_refused(file: Callable[[bytes], Path], data: bytes) -> None:
    with pytest.raises((BadPack, TooBig)):
        unpack(file(data))


@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_else(tmp_path_factory: Any, data: bytes) -> None:
    path = tmp_path_factory.mktemp("pack") / "pack"
    path.write_bytes(data)
    with pytest.raises((BadPack, TooBig)):
        unpack(path)


def test_a_bomb_ends_at_the_limit(file: Callable[[bytes], Path]) -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(50_000_000))
    with pytest.raises(TooBig):
        unpack(file(bomb), limits=Limits(unpacked_bytes_max=1_000_000))


@pytest.mark.parametrize("limit", ["object_bytes_max", "record_bytes_max"])
def test_one_large_entry_ends_at_the_limit(file: Callable[[bytes], Path], limit: str) -> None:
    history = make_history(4, size_bytes=5000)
    with pytest.raises(TooBig):
        unpack(file(packed(history)), limits=Limits(**{limit: 100}))


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_no_descriptor_is_left_open(file: Callable[[bytes], Path]) -> None:
    before = open_descriptors()
    for data in (HOSTILE["cut"], HOSTILE["broken zstd"], HOSTILE["wrong message"]):
        with pytest.raises(BadPack):
            unpack(file(data))
    unpack(file(packed(make_history(5)))).close()
    assert open_descriptors() == before
