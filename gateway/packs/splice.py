"""Packs are put together from bytes, never decoded: msgpack maps and arrays are concatenations.

A pack is the map `{version, commits, snapshots, objects}`; an object's entry is the map
`{"object_id": <64 hex digits>, "content": <bytes>}`, in this order of keys, so its content stands
at an offset known from its first bytes, and the entry of a segment can be copied as it is, or be
given another head for callers who write `sha256:` ids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgpack

# How a pack tells its snapshots: every one whole, or as changes on an earlier one.
Snapshots = Literal["whole", "delta"]
PACK_VERSIONS: dict[Snapshots, int] = {"whole": 1, "delta": 2}
# Part of every cache key: a change of the bytes below must not share packs with the old form.
FORMAT_VERSION = 1

_ENTRY_START: bytes = b"\x82" + msgpack.packb("object_id")
_CONTENT_KEY: bytes = msgpack.packb("content")
_ID_DIGITS = 64
# One byte of map header, the key, two bytes of text header, the digits.
ENTRY_ID_BYTES = len(_ENTRY_START) + 2 + _ID_DIGITS
_LENGTH_BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4}  # bin 8, bin 16, bin 32
# The longest head there is; so much of an entry tells where its content begins.
ENTRY_HEAD_BYTES_MAX = ENTRY_ID_BYTES + len(_CONTENT_KEY) + 1 + 4


def array_header(count: int) -> bytes:
    """The header of an array; `count` entries follow."""
    packer = msgpack.Packer(autoreset=False)
    packer.pack_array_header(count)
    return bytes(packer.bytes())


def map_header(count: int) -> bytes:
    """The header of a map; `count` pairs follow."""
    packer = msgpack.Packer(autoreset=False)
    packer.pack_map_header(count)
    return bytes(packer.bytes())


def pack_head(commit_count: int, *, snapshots: Snapshots = "whole") -> bytes:
    """What stands before the first commit; the commits follow, then `section("snapshots", n)`."""
    head = map_header(4) + msgpack.packb("version") + msgpack.packb(PACK_VERSIONS[snapshots])
    return bytes(head) + section("commits", commit_count)


def section(name: str, count: int) -> bytes:
    """A key of the pack and the header of its array."""
    return bytes(msgpack.packb(name)) + array_header(count)


def id_head(object_id: str) -> bytes:
    """The first part of an entry, up to and with the id, written as it is given: it takes the place
    of a stored entry's first `ENTRY_ID_BYTES` bytes where ids are asked for in the other form.
    """
    return _ENTRY_START + bytes(msgpack.packb(object_id))


def entry_head(object_id: str, content_bytes: int) -> bytes:
    """What stands before the content of an object's entry; the id is written as it is given."""
    return id_head(object_id) + _CONTENT_KEY + _bin_header(content_bytes)


def check_entry(start: bytes | memoryview, object_id: str, entry_bytes: int) -> int:
    """Make sure that these are the first bytes of this object's stored entry, of this length;
    where its content begins.

    Errors: ValueError when they are not.
    """
    head = bytes(start[:ENTRY_HEAD_BYTES_MAX])
    at = ENTRY_ID_BYTES + len(_CONTENT_KEY)
    if head[:at] != id_head(object_id) + _CONTENT_KEY or len(head) <= at:
        raise ValueError("not this object's entry")
    count = _LENGTH_BYTES.get(head[at], 0)
    content_bytes = int.from_bytes(head[at + 1 : at + 1 + count], "big")
    if not count or at + 1 + count + content_bytes != entry_bytes:
        raise ValueError("the entry's length does not fit")
    return at + 1 + count


def _bin_header(length: int) -> bytes:
    for marker, count in _LENGTH_BYTES.items():
        if length < 1 << (8 * count):
            return bytes([marker]) + length.to_bytes(count, "big")
    raise ValueError("msgpack holds at most 4 GiB of bytes")


@dataclass(frozen=True, slots=True)
class Reheaded:
    """A pack's map with more pairs: `head` takes the place of the pack's first `skip` bytes, the
    rest of the pack follows as it is, then `tail`.
    """

    head: bytes
    skip: int
    tail: bytes

    @property
    def bytes_added(self) -> int:
        """How much longer the map became."""
        return len(self.head) - self.skip + len(self.tail)


def rehead(pack_start: bytes, pairs: Mapping[str, Any]) -> Reheaded:
    """Add pairs at the end of a pack's map.

    Errors: ValueError when the bytes do not begin as a pack does.
    """
    old = map_header(4)
    if not pack_start.startswith(old):
        raise ValueError("not a pack")
    tail = b"".join(msgpack.packb(key) + msgpack.packb(value) for key, value in pairs.items())
    return Reheaded(head=map_header(4 + len(pairs)), skip=len(old), tail=tail)


def cache_key(*, parts: Mapping[str, str], sets: Mapping[str, Iterable[str]]) -> str:
    """The key of a pack that may be shared: what decides its bytes, and nothing about the caller.

    Shapes:  parts: repo, encoding, form of ids; sets: ids in any order.
    """
    told = [FORMAT_VERSION, sorted(parts.items())]
    told.append([[name, sorted(set(ids))] for name, ids in sorted(sets.items())])
    return hashlib.sha256(msgpack.packb(told)).hexdigest()
