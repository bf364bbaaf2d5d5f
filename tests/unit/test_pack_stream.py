"""A pack on its way into the store: in order, hashed, at the store's pace, never cut unnoticed."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
import zstandard

from gateway.packs.policy import PackPolicy
from gateway.packs.spool import PackWriter, Spool, SpoolBudget
from gateway.packs.stream import PackStream, Parts
from leases.errors import Corrupt, StoreUnavailable

POLICY = PackPolicy(spool_memory_bytes=1000, spool_bytes_max=100_000_000)
DATA = bytes(range(256)) * 10_000


class Source:
    """What follows the spool, `step` bytes at a time; `read` counts them, `wrong` ends them."""

    def __init__(self, data: bytes, step: int, *, wrong: Exception | None = None) -> None:
        self._data = data
        self._step = step
        self._wrong = wrong
        self.read = 0

    async def next_part(self) -> bytes | None:
        start = self.read * self._step
        if start >= len(self._data):
            if self._wrong is not None:
                raise self._wrong
            return None
        self.read += 1
        return self._data[start : start + self._step]


@asynccontextmanager
async def stream_of(
    head: bytes, source: Source, *, encoding: Any = "raw", step: int = 10_000, ahead: int = 1
) -> AsyncIterator[PackStream]:
    spool = Spool(POLICY, SpoolBudget(POLICY.spool_bytes_max))
    writer = PackWriter(spool, encoding=encoding, zstd_level=3)
    try:
        async with asyncio.TaskGroup() as tasks:
            for start in range(0, len(head), step):
                await writer.write(memoryview(head)[start : start + step])
            parts = Parts(read=source.next_part, ahead=ahead)
            stream = PackStream(writer, parts, tasks=tasks, size_bytes=0)
            yield stream
            stream.stop()
    finally:
        await spool.close()


async def read(stream: PackStream) -> bytes:
    return b"".join([chunk async for chunk in stream.chunks()])


def plain(stored: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(stored)


@pytest.mark.parametrize("encoding", ["raw", "zstd"])
@pytest.mark.parametrize("step", [1000, 300_000, 5_000_000])
@pytest.mark.parametrize("split", [0, 7, 2_000_000, len(DATA)])
async def test_a_stream_hashes_what_is_stored(encoding: Any, step: int, split: int) -> None:
    source = Source(DATA[split:], step)
    async with stream_of(DATA[:split], source, encoding=encoding, step=step) as stream:
        stored = await read(stream)
        made = stream.made()
    assert made.sha256 == hashlib.sha256(stored).hexdigest()
    assert made.size_bytes == len(stored)
    if encoding == "zstd":
        assert len(stored) < len(DATA) / 2
        stored = plain(stored)
    assert stored == DATA


async def test_compressed_bytes_depend_on_the_content_alone() -> None:
    """Equal packs are equal bytes, in whatever parts they were read."""
    stored = []
    for split, step in ((0, 13_001), (100_000, 8 << 20), (2_000_000, 70_000)):
        source = Source(DATA[split:], step)
        async with stream_of(DATA[:split], source, encoding="zstd", step=step) as stream:
            stored.append(await read(stream))
    assert stored[0] == stored[1] == stored[2]


@pytest.mark.parametrize("ahead", [1, 4])
async def test_so_many_parts_are_read_ahead_and_no_more(ahead: int) -> None:
    """The store's pace is the build's, or a slow store would have the pack in memory."""
    source = Source(DATA, 100_000)
    async with stream_of(b"", source, ahead=ahead) as stream, aclosing(stream.chunks()) as chunks:
        for number in range(1, 4):
            await anext(chunks)
            for _ in range(20):
                await asyncio.sleep(0)
            assert source.read == number + ahead


async def test_what_was_not_read_to_its_end_is_no_pack() -> None:
    """A store that says it is through although it did not take everything."""
    async with stream_of(DATA, Source(DATA, 100_000)) as stream:
        async with aclosing(stream.chunks()) as chunks:
            await anext(chunks)
        with pytest.raises(StoreUnavailable):
            stream.made()


async def test_an_error_of_the_source_reaches_the_store_as_it_is() -> None:
    source = Source(DATA, 1_000_000, wrong=Corrupt("A segment is shorter than its index says."))
    async with stream_of(b"head", source) as stream:
        with pytest.raises(Corrupt):
            await read(stream)
        assert isinstance(stream.failure, Corrupt)
        with pytest.raises(StoreUnavailable):
            stream.made()
