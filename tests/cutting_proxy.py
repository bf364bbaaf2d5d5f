"""A TCP proxy on loopback that breaks downloads off after so many bytes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Self

_DOWNLOAD = re.compile(rb"GET \S+/transient/")  # From the gateway or from a bucket.


class CuttingProxy:
    """Passes everything on; the nth download loses its connection after `cuts[n]` bytes."""

    def __init__(self, cuts: Sequence[int]) -> None:
        self._cuts = list(cuts)
        self.downloads: list[bytes] = []  # The heads of the requests, as they came.
        self.target_port = 0
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left: list[int] = []  # Bytes this connection may still answer, once a download began.

        async def up(to: asyncio.StreamWriter) -> None:
            while chunk := await reader.read(65536):
                if _DOWNLOAD.match(chunk):
                    self.downloads.append(chunk)
                    if self._cuts:
                        left[:] = [self._cuts.pop(0)]
                to.write(chunk)
                await to.drain()

        async def down(source: asyncio.StreamReader) -> None:
            while chunk := await source.read(65536):
                if left:
                    chunk = chunk[: left[0]]
                    left[0] -= len(chunk)
                writer.write(chunk)
                await writer.drain()
                if left and left[0] == 0:
                    return

        with suppress(ConnectionError):
            async with _connected(self.target_port) as (source, to):
                tasks = [asyncio.create_task(up(to)), asyncio.create_task(down(source))]
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        writer.close()


@asynccontextmanager
async def _connected(
    port: int,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    source, to = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield source, to
    finally:
        to.transport.abort()
