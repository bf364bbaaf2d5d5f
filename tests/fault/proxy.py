"""A gate before the database: passes everything on, and loses answers when it is told to.

A lost answer is one that PostgreSQL has sent (the statement is committed) and nobody receives: the
connection ends instead. It also lets a process without root's powers through to a socket that
lies in another account's folder.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from sqlalchemy.engine import make_url

_CHUNK_BYTES = 1 << 20
# ReadyForQuery, not in a transaction: what came before it is committed.
COMMITTED = b"Z\x00\x00\x00\x05I"


class DatabaseProxy:
    """Connections to one database. `loses(answer)` says whether an answer gets lost."""

    def __init__(self, target: Path, folder: Path) -> None:
        self._target = target
        self.socket = folder / target.name
        self.loses: Callable[[bytes], bool] = lambda _answer: False
        self._handlers: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either side or a lost answer ends it."""
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        there_reader, there = await asyncio.open_unix_connection(self._target)
        both = {writer, there}
        self._writers |= both
        try:
            async with asyncio.TaskGroup() as ways:
                ways.create_task(self._pass_on(reader, there, both))
                ways.create_task(self._pass_on(there_reader, writer, both, losing=True))
        finally:
            self._writers -= both
            self._handlers.discard(task)

    async def _pass_on(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        both: set[asyncio.StreamWriter],
        *,
        losing: bool = False,
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK_BYTES):
                if losing and self.loses(data):
                    break
                writer.write(data)
                await writer.drain()
        for end in both:
            end.transport.abort()

    async def close(self) -> None:
        """End every connection."""
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*self._handlers)


@asynccontextmanager
async def proxied(database_url: str) -> AsyncIterator[tuple[DatabaseProxy, str]]:
    """A proxy before this database, and the URL that leads through it."""
    url = make_url(database_url)
    target = Path(str(url.query["host"])) / f".s.PGSQL.{url.query['port']}"
    folder = Path(tempfile.mkdtemp(prefix="mpg-proxy-"))
    proxy = DatabaseProxy(target, folder)
    server = await asyncio.start_unix_server(proxy.handle, proxy.socket)
    try:
        through = url.update_query_dict({"host": str(folder)})
        yield proxy, through.render_as_string(hide_password=False)
    finally:
        server.close()
        await proxy.close()
        shutil.rmtree(folder)
