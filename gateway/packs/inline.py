"""A pack as the body of an answer: read by ranges from the store, or from the spool in which it was
built for this answer alone, with the answer's own pairs added.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from gateway.packs.plan import Counts
from gateway.packs.splice import Reheaded, Snapshots, pack_head, rehead, section
from gateway.packs.spool import Spool
from gateway.packs.store_calls import store_call
from leases.errors import Corrupt
from leases.ports import BlobStore

# Sixteen requests for the largest inline answer; the next is not read before the last is sent.
_CHUNK_BYTES = 4 * 1024 * 1024
# What is handed over at once: the server and the socket hold copies of it, for every caller.
_PIECE_BYTES = 256 * 1024


async def _nothing_to_close() -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class InlinePack:
    """A pack's map with more pairs, ready to be sent: exactly `size_bytes` in `chunks`.

    Whoever has it closes it, sent or not: it may hold a spool.
    """

    size_bytes: int
    chunks: AsyncIterator[bytes]
    counts: Counts | None
    mpack_id: str | None = None
    close: Callable[[], Awaitable[None]] = _nothing_to_close


def inline_nothing(pairs: Mapping[str, Any], snapshots: Snapshots) -> InlinePack:
    """The pack of nothing, for who is up to date."""
    pack = pack_head(0, snapshots=snapshots) + section("snapshots", 0) + section("objects", 0)
    around = rehead(pack, pairs)

    async def chunks() -> AsyncIterator[bytes]:
        yield around.head + pack[around.skip :] + around.tail

    return InlinePack(
        size_bytes=len(pack) + around.bytes_added,
        chunks=chunks(),
        counts=Counts(commits=0, snapshots=0, objects=0),
    )


async def inline_of(spool: Spool, pairs: Mapping[str, Any], counts: Counts) -> InlinePack:
    """A finished pack that is in nothing but its spool, which is the answer's from now on."""
    size_bytes = spool.size_bytes

    first = await spool.read(0, min(_CHUNK_BYTES, size_bytes))
    around = rehead(first, pairs)
    return InlinePack(
        size_bytes=size_bytes + around.bytes_added,
        chunks=_chunks(spool.read, size_bytes=size_bytes, first=first, around=around),
        counts=counts,
        close=spool.close,
    )


async def read_back(
    store: BlobStore, *, key: str, size_bytes: int, pairs: Mapping[str, Any]
) -> tuple[int, AsyncIterator[bytes]]:
    """A stored pack; its first range is read before this answers, so that a blob which is gone is
    an error and never half an answer.

    Errors: BlobMissing, StoreUnavailable; Corrupt when it is no pack.
    """
    read = partial(_range, store, key)
    first = await read(0, min(_CHUNK_BYTES, size_bytes))
    try:
        around = rehead(first, pairs)
    except ValueError as error:
        raise Corrupt("A stored pack cannot be read.", storage_key=key) from error
    chunks = _chunks(read, size_bytes=size_bytes, first=first, around=around)
    return size_bytes + around.bytes_added, chunks


async def _chunks(
    read: Callable[[int, int], Awaitable[bytes]],
    *,
    size_bytes: int,
    first: bytes,
    around: Reheaded,
) -> AsyncIterator[bytes]:
    second = len(first)
    yield around.head
    for piece in _pieces(first, around.skip):
        yield piece
    del first
    for start in range(second, size_bytes, _CHUNK_BYTES):
        data = await read(start, min(start + _CHUNK_BYTES, size_bytes))
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
