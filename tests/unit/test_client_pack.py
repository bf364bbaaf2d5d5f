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
from gateway.wire.ids import IdForm, commit_id_of, snapshot_id_of
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


@pytest.mark.parametrize("form", list(IdForm))
def test_what_is_named_and_not_there_is_absent(file: Callable[[bytes], Path], form: IdForm) -> None:
    history = make_history(1, form=form)
    with unpack(file(packed(history))) as pack:
        assert pack.absent() == set()
    commits = history.bundle()["commits"]
    first = next(iter(history.commits))
    with unpack(file(packed(history, commits=commits[1:]))) as pack:
        assert pack.absent() == {first}
    with unpack(file(packed(history, snapshots=[]))) as pack:
        assert pack.absent() == {commit.snapshot_id for commit in history.commits.values()}
    with unpack(file(packed(history, objects=[]))) as pack:
        assert pack.absent() == {
            object_id.removeprefix("sha256:")
            for commit in history.commits.values()
            for object_id in commit.manifest.values()
        }


def test_ids_may_be_asked_for_in_another_form_than_their_authors(
    file: Callable[[bytes], Path],
) -> None:
    """The gateway writes manifests in the form of the request; the id is of the author's."""
    history = make_history(1)
    write = IdForm.PREFIXED.write
    snapshots = [
        {**one, "manifest": {path: write(text) for path, text in one["manifest"].items()}}
        for one in history.bundle()["snapshots"]
    ]
    with unpack(file(packed(history, snapshots=snapshots))) as pack:
        assert len(pack.snapshots) == len(snapshots)


def delta_pack(*deltas: dict[str, Any], **changes: Any) -> bytes:
    """A pack of two snapshots, the second told by its changes, and what else is said of them."""
    history = History()
    first = history.commit({"a": history.content(b"1"), "b": history.content(b"2")})
    second = history.commit({"a": history.content(b"1")}, parents=[first])
    pack = msgpack.unpackb(packed(history, version=2))
    told = {"base_snapshot_id": first.snapshot_id, "delta": {"b": None}}
    pack["snapshots"][1] = {"snapshot_id": second.snapshot_id, "created_at": "now"} | told | changes
    for delta in deltas:
        pack["snapshots"].append(pack["snapshots"][1] | delta)
    return bytes(msgpack.packb(pack))


def _told_whole_as_well() -> bytes:
    pack = msgpack.unpackb(delta_pack())
    first, second = pack["snapshots"]
    manifest = {"a": first["manifest"]["a"]}
    pack["snapshots"].append({"snapshot_id": second["snapshot_id"], "manifest": manifest})
    return bytes(msgpack.packb(pack))


def test_a_snapshot_that_is_told_by_changes(file: Callable[[bytes], Path]) -> None:
    with unpack(file(delta_pack(later=[1]))) as pack:
        (first, second) = pack.snapshots.values()
        assert second["manifest"] == {"a": first["manifest"]["a"]}
        assert (second["created_at"], second["later"]) == ("now", [1])
        assert not {"delta", "base_snapshot_id"} & second.keys()
        assert pack.absent() == set()


def test_an_object_that_only_a_change_names_is_absent(file: Callable[[bytes], Path]) -> None:
    history = History()
    first = history.commit({"a": history.content(b"1")})
    second = history.commit({"a": history.content(b"2")}, parents=[first])
    told = {"base_snapshot_id": first.snapshot_id, "delta": dict(second.manifest)}
    snapshots = history.bundle()["snapshots"]
    snapshots[1] = {"snapshot_id": second.snapshot_id} | told
    data = packed(history, version=2, snapshots=snapshots, objects=history.objects()[:1])
    with unpack(file(data)) as pack:
        assert pack.absent() == set(second.manifest.values())


def test_entries_of_any_make_are_read(file: Callable[[bytes], Path]) -> None:
    """The usual ones come first and last, so the ways of reading are changed between; and some
    contents are larger than what is read at once.
    """
    history = make_history(6, commits=30)
    large = [history.content(bytes([number]) * 3_000_000) for number in (1, 2)]
    entries = sorted(history.objects(), key=lambda one: len(one["content"]))
    entries[5] = {"content": entries[5]["content"], "object_id": entries[5]["object_id"]}
    entries[9] = {"path": "x", **entries[9]}
    for changes in ({}, {"objects": entries}):
        for data in (packed(history, **changes), packed(history, **changes, later=[1] * 9)):
            with unpack(file(data)) as pack:
                assert {oid: pack.content(oid) for oid in pack.objects} == history.contents
    assert set(large) <= history.contents.keys()


def test_records_may_be_longer_than_what_is_read_at_once(file: Callable[[bytes], Path]) -> None:
    history = History()
    for number in range(9):
        manifest = {"a": history.content(b"%d" % number)}
        history.commit(manifest, message=f"{number}" * 20_000 * number)
    for data in (packed(history), zstandard.ZstdCompressor().compress(packed(history))):
        with unpack(file(data)) as pack:
            for commit_id, commit in history.commits.items():
                assert pack.commits[commit_id] == commit.record
                assert pack.snapshots[commit.snapshot_id]["manifest"] == commit.manifest


def test_what_nobody_knows_is_no_record(file: Callable[[bytes], Path]) -> None:
    """It is passed over a piece at a time, however much it is."""
    history = make_history(1)
    for place in ("first", "last"):
        told = packed(history) if place == "last" else b""
        many = msgpack.packb("later") + b"\xdc\xff\xff" + 0xFFFF * b"\xa3abc"
        data = b"\x85" + many + packed(history)[1:] if not told else b"\x85" + told[1:] + many
        with unpack(file(data), limits=Limits(record_bytes_max=10_000)) as pack:
            assert set(pack.commits) == set(history.commits)


@pytest.mark.parametrize("compress", [bytes, zstandard.ZstdCompressor().compress])
def test_a_file_that_changed_since_is_found_out(
    file: Callable[[bytes], Path], compress: Callable[[bytes], bytes]
) -> None:
    history = make_history(1)
    object_id = history.content(b"right" * 100)
    data = packed(history)
    path = file(compress(data))
    with unpack(path) as pack:
        with path.open("r+b") as open_file:
            open_file.write(compress(data.replace(b"right" * 100, b"wrong" * 100)))
        with pytest.raises(BadPack, match="changed"):
            pack.content(object_id)


def _cut_content() -> bytes:
    """One usual entry whose content says to be longer than all that follows."""
    entry = b"\x82\xa9object_id\xd9\x40" + b"a" * 64 + b"\xa7content\xc5\xff\xff!"
    return packed(make_history(3), objects=[])[:-1] + b"\x91" + entry


def _two_readings(
    path: str, *, object_id: str = "1" * 64, message: str = "m", parent: str | None = None
) -> bytes:
    """A commit and its snapshot whose ids are right, but not theirs alone."""
    snapshot_id = snapshot_id_of({path: object_id})
    parent_ids = [parent] if parent else []
    commit = {
        "commit_id": commit_id_of(parent_ids, snapshot_id, message=message, committed_at="now"),
        "parent_commit_id": parent,
        "snapshot_id": snapshot_id,
        "message": message,
        "committed_at": "now",
    }
    snapshot = {"snapshot_id": snapshot_id, "manifest": {path: object_id}}
    return bytes(
        msgpack.packb({"version": 1, "commits": [commit], "snapshots": [snapshot], "objects": []})
    )


def test_what_has_one_reading_is_read(file: Callable[[bytes], Path]) -> None:
    unpack(file(_two_readings("a", parent="a" * 64))).close()


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
    "other version": _changed(lambda p: p.update(version=3)),
    "a wrong change": delta_pack(delta={}),
    "a change of numbers": delta_pack(delta={"a": 1}),
    "a change that is a list": delta_pack(delta=[1]),
    "a base without a change": _changed(lambda p: p["snapshots"][0].update(base_snapshot_id="x")),
    "a base that is a number": delta_pack(base_snapshot_id=1),
    "an unknown base": delta_pack(base_snapshot_id="a" * 64),
    "told twice": delta_pack({}),
    "told by changes and then whole": _told_whole_as_well(),
    "its own base": _changed(
        lambda p: p["snapshots"][0].update(
            base_snapshot_id=p["snapshots"][0]["snapshot_id"], delta={}
        )
    ),
    "a changed path with NUL": delta_pack(delta={"b": None, "a\0b": None}),
    "content longer than the pack": _cut_content(),
    "wrong content": _changed(lambda p: p["objects"][0].update(content=b"!")),
    "content is text": _changed(lambda p: p["objects"][0].update(content="!")),
    "object without id": _changed(lambda p: p["objects"][0].pop("object_id")),
    "object is a list": _changed(lambda p: p["objects"].append([1])),
    "wrong message": _changed(lambda p: p["commits"][0].update(message="!")),
    "commit id is no id": _changed(lambda p: p["commits"][0].update(commit_id="../../etc")),
    "wrong parent": _changed(lambda p: p["commits"][0].update(parent_commit_id="a" * 64)),
    "commit without snapshot": _changed(lambda p: p["commits"][0].pop("snapshot_id")),
    "metadata is a list": _changed(lambda p: p["commits"][0].update(metadata=[1])),
    "a message with NUL": _two_readings("a", message="b\0c"),
    "a parent with NUL": _two_readings("a", parent="a" * 64 + "\0" + "b" * 64),
    "wrong manifest": _changed(lambda p: p["snapshots"][0]["manifest"].update({"x": "a" * 64})),
    "a path with NUL": _two_readings("a\0" + "0" * 64 + "\0b"),
    "an id with NUL": _two_readings("a", object_id="0" * 64 + "\0b\0" + "1" * 64),
    "an id with NUL as long as a prefixed one": _two_readings("a", object_id="0" * 64 + "\0b.json"),
    "an id that is none": _two_readings("a", object_id="x"),
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
    plain = packed(make_history(1), later=bytes(50_000_000))
    bomb = zstandard.ZstdCompressor().compress(plain)
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
    for compress in (bytes, zstandard.ZstdCompressor().compress):
        with unpack(file(compress(packed(make_history(5))))) as pack:
            pack.content(next(iter(pack.objects)))
    assert open_descriptors() == before
