"""A proxy before the S3 server that may answer itself, hold a request back, or spoil an answer.

It reads each request whole before it passes it on, so a request that was held reaches the server
even if its client has gone: as a real network may do it. Requests reach the server as they were
signed, so URLs that are signed for the proxy's address are good. Ready-made faults:
tests/fault/s3_faults.py.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_HEAD_END = b"\r\n\r\n"
_TURNS = 10
_ANSWER_BYTES_MAX = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a client asked."""

    method: str
    path: str
    query: str
    body: bytes = field(default=b"", repr=False)

    def __str__(self) -> str:
        return f"{self.method} {self.path}?{self.query}"


Meddle = Callable[[Request], Awaitable[bytes | None]]
PassOn = Callable[[], Awaitable[bytes]]
Fault = Callable[[Request, PassOn], Awaitable[bytes | None]]
_RESET = struct.pack("ii", 1, 0)  # Linger for no time at all: the connection is reset.


def answer(status: int, code: str) -> bytes:
    """An error as S3 words it."""
    body = f"<Error><Code>{code}</Code><Message>by the proxy</Message></Error>".encode()
    head = f"HTTP/1.1 {status} No\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


class S3Proxy:
    """`meddle(request)` may wait, and may answer in the server's place; `cut` halves bodies.

    `fault(request, pass_on)` does all of it: what it answers is sent, None resets the connection.
    """

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._host, self._port = parts.hostname, parts.port
        self.requests: list[Request] = []
        self.passed: list[Request] = []  # The server has answered these.
        self.meddle: Meddle | None = None
        self.fault: Fault | None = None
        self.cut = False
        self.url = ""
        self._handlers: set[asyncio.Task[None]] = set()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                await self._serve(reader, writer)
        finally:
            writer.close()
            self._handlers.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(_HEAD_END):
            line, *headers = head.decode("latin-1").split("\r\n")
            method, target, _version = line.split(" ")
            fields = {
                name.lower(): text.strip()
                for name, _, text in (header.partition(":") for header in headers if header)
            }
            if "100-continue" in fields.get("expect", "").lower():
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = await reader.readexactly(int(fields.get("content-length", "0")))
            path, _, query = target.partition("?")
            request = Request(method=method, path=path, query=query, body=body)
            self.requests.append(request)
            told = await self._answer(request, _closing(head))
            if told is None:
                connection = writer.get_extra_info("socket")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                writer.transport.abort()
                return
            if self.cut:
                told = told[: (told.index(_HEAD_END) + len(told)) // 2]
            writer.write(told)
            await writer.drain()
            return  # One request a connection: whatever comes next starts afresh.

    async def _answer(self, request: Request, head: bytes) -> bytes | None:
        async def pass_on() -> bytes:
            told = await self._pass_on(head, request.body)
            self.passed.append(request)
            return told

        if self.fault is not None:
            return await self.fault(request, pass_on)
        told = await self.meddle(request) if self.meddle is not None else None
        return await pass_on() if told is None else told

    async def _pass_on(self, head: bytes, body: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(
            self._host, self._port, limit=_ANSWER_BYTES_MAX
        )
        try:
            writer.write(head + body)
            await writer.drain()
            return await reader.read(-1)
        finally:
            writer.transport.abort()  # Cut short, it would go on sending.

    async def close(self) -> None:
        for handler in list(self._handlers):
            handler.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)
        # A client may still be sending what it has given up; it notices in the loop's next turns.
        for _ in range(_TURNS):
            await asyncio.sleep(0)


def _closing(head: bytes) -> bytes:
    lines = head.split(b"\r\n")
    kept = [line for line in lines if not line.lower().startswith((b"connection:", b"expect:"))]
    return b"\r\n".join([kept[0], b"Connection: close", *kept[1:]])


@asynccontextmanager
async def s3_proxied(target: str) -> AsyncIterator[S3Proxy]:
    """A proxy for the time of the block."""
    proxy = S3Proxy(target)
    server = await asyncio.start_server(proxy.handle, "127.0.0.1", 0, limit=_ANSWER_BYTES_MAX)
    proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
