"""Packs put together from bytes are what msgpack would have written."""

from __future__ import annotations

import hashlib

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.packs.splice import (
    ENTRY_ID_BYTES,
    array_header,
    cache_key,
    check_entry,
    entry_head,
    id_head,
    map_header,
    pack_head,
    rehead,
    section,
)

CONTENTS = st.binary(max_size=300) | st.sampled_from(
    [b"x" * size for size in (255, 256, 65_535, 65_536)]
)
JSONISH = st.dictionaries(
    st.text(max_size=5), st.integers(-(2**63), 2**64 - 1) | st.text(max_size=5), max_size=4
)
BOUNDARIES = st.sampled_from([0, 1, 15, 16, 65_535, 65_536, 1 << 20])


def bare_id(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def entry(content: bytes) -> bytes:
    return entry_head(bare_id(content), len(content)) + content


@given(BOUNDARIES | st.integers(0, 70_000))
def test_headers_are_msgpacks(count: int) -> None:
    unpacker = msgpack.Unpacker()
    unpacker.feed(array_header(count) + map_header(count))
    assert unpacker.read_array_header() == count
    assert unpacker.read_map_header() == count


@given(CONTENTS)
def test_an_entry_is_a_map_with_a_fixed_head(content: bytes) -> None:
    data = entry(content)
    assert data == msgpack.packb({"object_id": bare_id(content), "content": content})
    check_entry(data, bare_id(content), len(data))


@given(CONTENTS)
def test_an_entry_gets_the_other_form_by_its_head_alone(content: bytes) -> None:
    prefixed = "sha256:" + bare_id(content)
    data = id_head(prefixed) + entry(content)[ENTRY_ID_BYTES:]
    assert msgpack.unpackb(data) == {"object_id": prefixed, "content": content}


@given(CONTENTS, st.integers(0, 400))
def test_other_bytes_are_no_entry(content: bytes, at: int) -> None:
    data = bytearray(entry(content))
    at %= len(data) - len(content)
    data[at] ^= 0x01
    with pytest.raises(ValueError):
        check_entry(bytes(data), bare_id(content), len(data))


@given(CONTENTS)
def test_a_cut_entry_is_noticed(content: bytes) -> None:
    data = entry(content)
    with pytest.raises(ValueError):
        check_entry(data, bare_id(content), len(data) + 1)
    with pytest.raises(ValueError):
        check_entry(data[:ENTRY_ID_BYTES], bare_id(content), len(data))


@given(
    st.lists(JSONISH, max_size=20),
    st.lists(JSONISH, max_size=20),
    st.lists(CONTENTS, max_size=5),
    JSONISH,
)
def test_a_pack_is_a_concatenation(
    commits: list[dict[str, object]],
    snapshots: list[dict[str, object]],
    contents: list[bytes],
    heads: dict[str, object],
) -> None:
    pack = b"".join(
        [
            pack_head(len(commits)),
            *map(msgpack.packb, commits),
            section("snapshots", len(snapshots)),
            *map(msgpack.packb, snapshots),
            section("objects", len(contents)),
            *map(entry, contents),
        ]
    )
    expected = {
        "version": 1,
        "commits": commits,
        "snapshots": snapshots,
        "objects": [{"object_id": bare_id(one), "content": one} for one in contents],
    }
    assert msgpack.unpackb(pack) == expected
    assert next(iter(msgpack.unpackb(pack))) == "version"
    around = rehead(pack[:10], {"branch_heads": heads})
    whole = around.head + pack[around.skip :] + around.tail
    assert len(whole) == len(pack) + around.bytes_added
    assert msgpack.unpackb(whole) == expected | {"branch_heads": heads}


def test_what_is_no_pack_is_not_reheaded() -> None:
    with pytest.raises(ValueError):
        rehead(b"\x80", {})


def test_a_cache_key_depends_on_sets_and_not_on_their_order() -> None:
    def key(wants: list[str], repo: str = "r") -> str:
        return cache_key(parts={"repo": repo}, sets={"wants": wants, "commons": []})

    assert key(["a", "b", "b"]) == key(["b", "a"])
    assert len({key(["a"]), key(["b"]), key(["a"], "other"), key([])}) == 4
