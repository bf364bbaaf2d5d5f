"""A pack on its way into the store: made, hashed and stored at the same time, a few MiB of it held.

What planning wrote comes out of its spool; the objects' entries follow as they are read. While the
store takes one part, the next ones are read (so many and no more: the store's pace is the build's),
and the part itself is hashed. The hash is known only to who has read everything, so no truncated
pack can be activated.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass

from gateway.packs.spool import PackWriter
from leases.errors import StoreUnavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What a pack turned out to be."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What follows planning's part of a pack, `ahead` pieces of it read before they are asked for.

    `read` gives the next one, None behind the last; it may be called again before it has answered.
    """

    read: Callable[[], Awaitable[bytes | None]]
    ahead: int


class PackStream:
    """The bytes of one pack, to be read once; `size_bytes` is their number before compression.

    `failure` is why it broke off, if it did; `moved` grows for as long as anything gets on.
    """

    def __init__(
        self,
        writer: PackWriter,
        parts: Parts,
        *,
        tasks: asyncio.TaskGroup,
        size_bytes: int,
    ) -> None:
        self._writer = writer
        self._parts = parts
        self._tasks = tasks
        self._ahead: deque[asyncio.Task[bytes | None]] = deque()
        self._stored_bytes = 0
        self.size_bytes = size_bytes
        self.ended = False
        self.failure: BaseException | None = None
        self.moved = 0

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The pack as it is stored.

        Errors: what `PackBuilder.stream` names.
        """
        try:
            self._look_ahead()
            await self._writer.flush()
            async for chunk in self._writer.spool.chunks():
                yield self._handed_over(chunk)
            async for chunk in self._entries():
                async with self._writer.hashing(chunk):
                    yield self._handed_over(chunk)
        except Exception as error:
            self.failure = error
            raise
        self.ended = True

    def made(self) -> Made:
        """What was made of it.

        Errors: StoreUnavailable when it was not read to its end: then what is stored is no pack.
        """
        if not self.ended:
            raise StoreUnavailable(call="put", cause="truncated")
        return Made(sha256=self._writer.digest(), size_bytes=self._stored_bytes)

    def stop(self) -> None:
        """Nobody reads on."""
        for reading in self._ahead:
            reading.cancel()

    async def _next(self) -> bytes | None:
        part = await self._ahead.popleft()
        if self.failure is not None:
            raise self.failure
        self._look_ahead()
        return part

    def _look_ahead(self) -> None:
        while len(self._ahead) < self._parts.ahead:
            self._ahead.append(self._tasks.create_task(self._read()))

    async def _read(self) -> bytes | None:
        """The next part; None at the end, and when reading one failed."""
        if self.failure is not None:
            return None
        try:
            part = await self._parts.read()
        except Exception as error:  # noqa: BLE001  told to who reads the stream
            self.failure = error
        else:
            self.moved += 1
            return part
        return None

    async def _entries(self) -> AsyncGenerator[bytes, None]:
        """What follows that which planning wrote, as it is stored."""
        while (part := await self._next()) is not None:
            if chunk := await self._writer.compressed(part):
                yield chunk
        if chunk := await self._writer.compressed(b"", last=True):
            yield chunk

    def _handed_over(self, chunk: bytes) -> bytes:
        self._stored_bytes += len(chunk)
        self.moved += 1
        return chunk
