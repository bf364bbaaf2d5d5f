"""A gate before the database: passes everything on, and breaks things when it is told to.

`loses(answer)` loses answers that look a certain way. A `Fault` waits for one statement (asyncpg
sends each as Parse, once, and then Bind with its parameters) and happens to it once:

    UNDELIVERED   it never arrives; the connection ends
    LOST          it is carried out, and its answer never arrives; the connection ends
    BLACK_HOLE    it never arrives, and for a while nothing at all does, either way, before the end

`silence()` is the end of a host: what is connected now hears nothing any more, not even an end.

It also lets a process without root's powers through to a socket that lies in another account's
folder.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from sqlalchemy.engine import make_url

from leases.clock import SystemClock

_CHUNK_BYTES = 1 << 20
_SILENCE_SECONDS = 0.5
# ReadyForQuery, not in a transaction: what came before it is committed.
COMMITTED = b"Z\x00\x00\x00\x05I"


class FaultKind(StrEnum):
    """What happens to a statement on its way."""

    UNDELIVERED = "undelivered"
    LOST = "lost"
    BLACK_HOLE = "black hole"


@dataclass(slots=True, kw_only=True)
class Fault:
    """Happens once, to the first statement with `sql` in its text and `bound` in its parameters."""

    kind: FaultKind
    sql: bytes
    bound: bytes = b""
    happened: asyncio.Event = field(default_factory=asyncio.Event)

    def is_due(self, sql: bytes, bound: bytes) -> bool:
        """Whether this is the statement."""
        return not self.happened.is_set() and self.sql in sql and self.bound in bound


@dataclass(slots=True)
class _Requests:
    """What a client sends, message by message: PostgreSQL's protocol as far as it is needed."""

    _waiting: bytearray = field(default_factory=bytearray)
    _started: bool = False
    _statements: dict[bytes, bytes] = field(default_factory=dict)

    def bound(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """The text and the parameters of each statement that these bytes complete the Bind of."""
        self._waiting += data
        while (message := self._next()) is not None:
            kind, body = message
            if kind == b"P":  # Parse: the statement's name, its text
                name, sql, _types = body.split(b"\0", 2)
                self._statements[name] = sql
            elif kind == b"B":  # Bind: the portal's name, the statement's, the parameters
                _portal, name, parameters = body.split(b"\0", 2)
                yield self._statements.get(name, b""), parameters

    def _next(self) -> tuple[bytes, bytes] | None:
        # The first message has no kind.
        begin = 1 if self._started else 0
        if len(self._waiting) < begin + 4:
            return None
        end = begin + int.from_bytes(self._waiting[begin : begin + 4], "big")
        if len(self._waiting) < end:
            return None
        message = bytes(self._waiting[:begin]), bytes(self._waiting[begin + 4 : end])
        del self._waiting[:end]
        self._started = True
        return message


@dataclass(slots=True, eq=False)
class _Gate:
    """One connection. `losing`: its next whole answer is lost; `silent`: nothing passes, until its
    end; `dead`: not even an end.
    """

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    requests: _Requests = field(default_factory=_Requests)
    losing: bool = False
    silent: bool = False
    dead: bool = False

    def end(self) -> None:
        self.client.transport.abort()
        self.server.transport.abort()


class DatabaseProxy:
    """Connections to one database. `loses(answer)` says whether an answer gets lost."""

    def __init__(self, target: Path, folder: Path) -> None:
        self.target = target  # A test may lead new connections elsewhere.
        self.socket = folder / target.name
        self.loses: Callable[[bytes], bool] = lambda _answer: False
        self.fault: Fault | None = None
        self._handlers: set[asyncio.Task[None]] = set()
        self._gates: set[_Gate] = set()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either side or a fault ends it."""
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        try:
            there_reader, there = await asyncio.open_unix_connection(self.target)
        except OSError:  # Nobody is there: the caller's connection ends.
            writer.transport.abort()
            self._handlers.discard(task)
            return
        gate = _Gate(writer, there)
        self._gates.add(gate)
        try:
            async with asyncio.TaskGroup() as ways:
                ways.create_task(self._ask(reader, gate))
                ways.create_task(self._answer(there_reader, gate))
        finally:
            self._gates.discard(gate)
            self._handlers.discard(task)

    async def _ask(self, reader: asyncio.StreamReader, gate: _Gate) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK_BYTES):
                if gate.dead:
                    continue
                if self._breaks(data, gate):
                    await SystemClock().sleep(_SILENCE_SECONDS if gate.silent else 0)
                    break
                gate.server.write(data)
                await gate.server.drain()
        gate.end()

    def _breaks(self, data: bytes, gate: _Gate) -> bool:
        """Whether these bytes shall not arrive."""
        broken = False
        for sql, bound in gate.requests.bound(data):
            fault = self.fault
            if fault is not None and fault.is_due(sql, bound):
                fault.happened.set()
                gate.losing = fault.kind is FaultKind.LOST
                gate.silent = fault.kind is FaultKind.BLACK_HOLE
                broken = not gate.losing
        return broken

    async def _answer(self, reader: asyncio.StreamReader, gate: _Gate) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK_BYTES):
                if self.loses(data) or (gate.losing and data.endswith(COMMITTED)):
                    break
                if gate.losing or gate.silent or gate.dead:
                    continue
                gate.client.write(data)
                await gate.client.drain()
        gate.end()

    def cut(self) -> None:
        """End every connection that there is now; new ones are let through."""
        for gate in self._gates:
            gate.end()

    def silence(self) -> None:
        """Let nothing pass any more on what is connected now; new connections are let through."""
        for gate in self._gates:
            gate.dead = True

    async def close(self) -> None:
        """End every connection."""
        self.cut()
        await asyncio.gather(*self._handlers)


def socket_of(database_url: str) -> Path:
    """The socket that a server of ours listens on."""
    url = make_url(database_url)
    return Path(str(url.query["host"])) / f".s.PGSQL.{url.query['port']}"


@asynccontextmanager
async def proxied(database_url: str) -> AsyncIterator[tuple[DatabaseProxy, str]]:
    """A proxy before this database, and the URL that leads through it."""
    url, target = make_url(database_url), socket_of(database_url)
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
