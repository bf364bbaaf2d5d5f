"""Where a pack waits between being built and being stored: in memory while small, then on disk.

All spools of a process share one budget, and a full disk is an ordinary outcome: both are answered
with 503 and leave nothing behind. File work runs in threads.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import os
import tempfile
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import IO, Literal, TypeVar, cast

import zstandard

from gateway.errors import SpoolFull
from gateway.packs.policy import PackPolicy

Encoding = Literal["raw", "zstd"]
T = TypeVar("T")
# Below this a thread costs more than the work it would take off the loop.
_INLINE_BYTES = 64 * 1024
_FLUSH_BYTES = 1024 * 1024
_CHUNK_BYTES = 4 * 1024 * 1024
_WINDOW_LOG = 23  # 8 MiB, held on both sides.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class SpoolBudget:
    """Bytes that all spools of a process may hold together; taken and given back by threads too."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self.bytes_held = 0

    def take(self, count: int) -> None:
        """Reserve bytes.

        Errors: SpoolFull.
        """
        with self._lock:
            if self.bytes_held + count > self._bytes_max:
                raise SpoolFull(bytes_held=self.bytes_held, bytes_max=self._bytes_max)
            self.bytes_held += count

    def give_back(self, count: int) -> None:
        """Free bytes."""
        with self._lock:
            self.bytes_held -= count


class Spool:
    """A temporary file; close it, and its bytes and its budget are free again.

    Bytes are appended, or put at places that were allocated before. Reads and writes name their
    offsets, so that several may run at once.
    """

    def __init__(self, policy: PackPolicy, budget: SpoolBudget) -> None:
        self._policy = policy
        self._budget = budget
        self._memory = bytearray()
        self._file: IO[bytes] | None = None
        self._working: set[asyncio.Future[object]] = set()
        self.size_bytes = 0
        self.closed = False

    async def append(self, make: Callable[[], bytes], *, work_bytes: int) -> None:
        """Add at the end what `make` gives; in a thread when it is much work.

        Errors: SpoolFull when the budget or the disk is used up.
        """
        if work_bytes < _INLINE_BYTES and self._file is None:
            self._append(make())
        else:
            await self.run(lambda: self._append(make()))

    async def allocate(self, count: int) -> None:
        """Make room at the end; what is there until it is put is undefined.

        Errors: SpoolFull.
        """
        if self._file is None and self.size_bytes + count > self._policy.spool_memory_bytes:
            await self.run(lambda: self._allocate(count))
        else:
            self._allocate(count)

    async def put(
        self, parts: Callable[[], Iterable[tuple[int, bytes | memoryview]]], *, size_bytes: int
    ) -> None:
        """Write parts at their offsets, inside of what is allocated; `parts` runs in a thread when
        there are many bytes.
        """
        if size_bytes < _INLINE_BYTES and self._file is None:
            self._put(parts())
        else:
            await self.run(lambda: self._put(parts()))

    async def read(self, start: int, stop: int) -> bytes:
        """The bytes `[start, stop)`."""
        if self._file is None:
            return bytes(memoryview(self._memory)[start:stop])
        return await self.run(lambda: self._read(start, stop))

    async def chunks(self, chunk_bytes: int = _CHUNK_BYTES) -> AsyncGenerator[bytes, None]:
        """All bytes in order."""
        for start in range(0, self.size_bytes, chunk_bytes):
            yield await self.read(start, min(start + chunk_bytes, self.size_bytes))

    async def close(self) -> None:
        """Free everything, after whatever threads still do with the file.

        It is freed then also when this is cancelled while it waits for them.
        """
        if self.closed:
            return
        self.closed = True
        if self._working:
            await asyncio.wait(self._working)
        else:
            self._free()

    def file(self) -> IO[bytes]:
        """The bytes as a file of its own, at its beginning, for a reader in a thread."""
        if self._file is None:
            return io.BytesIO(self._memory)
        return os.fdopen(os.dup(self._file.fileno()), "rb")

    async def run(self, work: Callable[[], T]) -> T:
        """Do file work in a thread that `close` will wait for."""
        # A cancelled caller must not close the file under the thread: close() waits for it.
        return await asyncio.shield(self.begun(work))

    def begun(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """The same, begun: whoever began it goes on meanwhile."""
        future = asyncio.get_running_loop().run_in_executor(None, work)
        told = cast("asyncio.Future[object]", future)
        self._working.add(told)
        told.add_done_callback(self._ended)
        return future

    def _ended(self, work: asyncio.Future[object]) -> None:
        self._working.discard(work)
        if self.closed and not self._working:
            self._free()

    def _free(self) -> None:
        if self._file is not None:
            self._file.close()
        self._memory = bytearray()
        self._budget.give_back(self.size_bytes)
        self.size_bytes = 0

    def _append(self, data: bytes) -> None:
        start = self.size_bytes
        self._allocate(len(data))
        self._put([(start, data)])

    def _allocate(self, count: int) -> None:
        self._budget.take(count)
        self.size_bytes += count
        if self._file is None and self.size_bytes <= self._policy.spool_memory_bytes:
            self._memory.extend(bytes(count))
        elif self._file is None:
            self._move_to_disk()

    def _move_to_disk(self) -> None:
        with _disk():
            self._file = cast(
                "IO[bytes]",
                tempfile.TemporaryFile(buffering=0, dir=self._policy.spool_dir),  # noqa: SIM115  close() closes it
            )
            _write_at(self._file.fileno(), self._memory, 0)
        self._memory = bytearray()

    def _put(self, parts: Iterable[tuple[int, bytes | memoryview]]) -> None:
        if self._file is None:
            for position, data in parts:
                self._memory[position : position + len(data)] = data
            return
        with _disk():
            for position, data in parts:
                _write_at(self._file.fileno(), data, position)

    def _read(self, start: int, stop: int) -> bytes:
        assert self._file is not None
        parts = []
        while start < stop:
            part = os.pread(self._file.fileno(), stop - start, start)
            assert part, "only what was put is read"
            parts.append(part)
            start += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


@contextmanager
def _disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise SpoolFull from error
        raise


def _write_at(file: int, data: bytes | bytearray | memoryview, position: int) -> None:
    left = memoryview(data)
    while left:
        count = os.pwrite(file, left, position)
        left, position = left[count:], position + count


def _compressor(level: int) -> zstandard.ZstdCompressionObj:
    """Successive manifests repeat each other at distances that only long matches reach: a seventh
    smaller, at little cost. Every reader takes this window (its default bound is 128 MiB).
    """
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, enable_ldm=True, window_log=_WINDOW_LOG
    )
    return zstandard.ZstdCompressor(compression_params=parameters).compressobj()


class PackWriter:
    """Writes the first part of a pack into a spool, and encodes what follows it.

    Small parts are joined; all is compressed by wish, and hashed as it is stored.
    """

    def __init__(self, spool: Spool, *, encoding: Encoding, zstd_level: int) -> None:
        self.spool = spool
        self.bytes_in = 0
        self._hash = hashlib.sha256()
        self._compressor = _compressor(zstd_level) if encoding == "zstd" else None
        self._parts: list[bytes | memoryview] = []
        self._parts_bytes = 0

    async def write(self, part: bytes | memoryview) -> None:
        """Add bytes of the pack."""
        self._parts.append(part)
        self._parts_bytes += len(part)
        self.bytes_in += len(part)
        if self._parts_bytes >= _FLUSH_BYTES:
            await self.flush()

    async def flush(self) -> None:
        """Have everything in the spool that was written."""
        parts, count = self._parts, self._parts_bytes
        self._parts, self._parts_bytes = [], 0
        await self.spool.append(lambda: self._encode(parts), work_bytes=count)

    async def compressed(self, part: bytes, *, last: bool = False) -> bytes:
        """What follows all that was written, as it is stored; with the last part, to the end."""
        if self._compressor is None:
            return part
        work = partial(self._compress, part, last=last)
        return work() if len(part) < _INLINE_BYTES else await self.spool.run(work)

    @asynccontextmanager
    async def hashing(self, chunk: bytes) -> AsyncIterator[None]:
        """Hash what follows, beside what is done in the block; its bytes must follow in order."""
        if len(chunk) < _INLINE_BYTES:
            self._hash.update(chunk)
            yield
        else:
            begun = self.spool.begun(partial(self._hash.update, chunk))
            yield
            await asyncio.shield(begun)

    def digest(self) -> str:
        """The SHA-256 of all that was stored, in hex digits."""
        return self._hash.hexdigest()

    def _encode(self, parts: list[bytes | memoryview]) -> bytes:
        data = self._compress(b"".join(parts), last=False)
        self._hash.update(data)
        return data

    def _compress(self, data: bytes, *, last: bool) -> bytes:
        if self._compressor is None:
            return data
        return self._compressor.compress(data) + (self._compressor.flush() if last else b"")
