"""A pack as the body of an answer: read back by ranges, with the answer's own pairs added."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.packs.plan import Counts
from gateway.packs.splice import Reheaded, pack_head, rehead, section
from gateway.packs.store_calls import store_call
from leases.errors import Corrupt
from leases.ports import BlobStore

# Sixteen requests for the largest inline answer; the next is not read before the last is sent.
_CHUNK_BYTES = 4 * 1024 * 1024
# What is handed over at once: the server and the socket hold copies of it, for every caller.
_PIECE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class InlinePack:
    """A pack's map with more pairs, ready to be sent: exactly `size_bytes` in `chunks`."""

    size_bytes: int
    chunks: AsyncIterator[bytes]
    counts: Counts | None
    mpack_id: str | None = None


def empty_pack() -> bytes:
    """The pack of nothing, for who is up to date."""
    return pack_head(0) + section("snapshots", 0) + section("objects", 0)


def inline_of(pack: bytes, pairs: Mapping[str, Any], counts: Counts) -> InlinePack:
    """A pack that is in memory."""
    around = rehead(pack, pairs)

    async def chunks() -> AsyncIterator[bytes]:
        yield around.head
        yield pack[around.skip :]
        yield around.tail

    size_bytes = len(pack) + around.bytes_added
    return InlinePack(size_bytes=size_bytes, chunks=chunks(), counts=counts)


async def read_back(
    store: BlobStore, *, key: str, size_bytes: int, pairs: Mapping[str, Any]
) -> tuple[int, AsyncIterator[bytes]]:
    """A stored pack; its first range is read before this answers, so that a blob which is gone is
    an error and never half an answer.

    Errors: BlobMissing, StoreUnavailable; Corrupt when it is no pack.
    """
    first = await _range(store, key, 0, min(_CHUNK_BYTES, size_bytes))
    try:
        around = rehead(first, pairs)
    except ValueError as error:
        raise Corrupt("A stored pack cannot be read.", storage_key=key) from error
    chunks = _chunks(store, key=key, size_bytes=size_bytes, first=first, around=around)
    return size_bytes + around.bytes_added, chunks


async def _chunks(
    store: BlobStore, *, key: str, size_bytes: int, first: bytes, around: Reheaded
) -> AsyncIterator[bytes]:
    second = len(first)
    yield around.head
    for piece in _pieces(first, around.skip):
        yield piece
    del first
    for start in range(second, size_bytes, _CHUNK_BYTES):
        data = await _range(store, key, start, min(start + _CHUNK_BYTES, size_bytes))
        for piece in _pieces(data, 0):
            yield piece
    yield around.tail


def _pieces(data: bytes, start: int) -> Iterator[bytes]:
    for begin in range(start, len(data), _PIECE_BYTES):
        yield data[begin : begin + _PIECE_BYTES]


async def _range(store: BlobStore, key: str, start: int, stop: int) -> bytes:
    with store_call("get"):
        data = await store.get(key, start, stop)
    if len(data) != stop - start:
        raise Corrupt("A stored pack is shorter than its lease says.", storage_key=key)
    return data
