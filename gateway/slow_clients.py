"""Clients that are too slow: none may hold what others wait for.

uvicorn has no limit on how slowly a request's head comes or an answer is read. Here each
connection is looked at every so often. One whose head is not complete in time, or whose reader has
taken less than the least rate since the last look, is cut. Bodies are timed where they are read,
by `BodyPace`, so that the sender is told why; what comes of one behind its answer is timed here.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any, Protocol, cast

import structlog
from starlette.types import Message, Receive
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.errors import BodyTooSlow

# What the common proxies take, with room to spare; httptools itself takes megabytes.
HEAD_BYTES_MAX = 64 * 1024
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER, for no time at all.
_LOOKS_PER_LIMIT = 2  # So a client is cut within one and a half limits of becoming too slow.

_log = structlog.get_logger(__name__)


class ShedObserver(Protocol):
    """Is told of clients that were cut."""

    def client_shed(self, stage: str) -> None:
        """One was too slow with its `head`, its `body`, or to read its `answer`."""
        ...


class BodyPace:
    """A body's least rate: so many bytes in each `seconds` that somebody waited for them.

    Only waiting counts: a store that takes the bytes slowly is not the sender's fault.
    """

    def __init__(self, *, seconds: float, bytes_per_second: int) -> None:
        self._seconds = seconds
        self._bytes_least = seconds * bytes_per_second
        self._waited = 0.0
        self._got = 0

    async def next(self, receive: Receive) -> Message:
        """The next message. Errors: BodyTooSlow."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(self._seconds - self._waited):
                message = await receive()
        except TimeoutError as error:
            raise BodyTooSlow from error
        self._waited += loop.time() - began
        self._got += len(message.get("body", b""))
        if self._got >= self._bytes_least:
            self._waited, self._got = 0.0, 0
        elif self._waited >= self._seconds and message.get("more_body", False):
            raise BodyTooSlow
        return message


class SheddingProtocol(HttpToolsProtocol):
    """uvicorn's protocol that looks at its client; made by `shedding_protocol`."""

    slow_seconds: float
    slow_bytes_per_second: int
    observer: ShedObserver

    _head_bytes = 0
    _head_began: float | None = None
    _in_body = False
    _body_bytes = 0
    _body_seen: int | None = None
    _pauses = 0
    _seen: tuple[int, int] | None = None
    _looking: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_began = self.loop.time()
        self._look_later()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._looking is not None:
            self._looking.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._answered and not self._in_body:
            if self._head_began is None:
                self._head_began = self.loop.time()
            self._head_bytes += len(data)
        super().data_received(data)
        if self._head_began is not None and self._head_bytes > HEAD_BYTES_MAX:
            self._shed("head")

    def on_headers_complete(self) -> None:
        self._head_began, self._head_bytes = None, 0
        self._in_body = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        super().on_message_complete()

    def pause_writing(self) -> None:
        self._pauses += 1
        super().pause_writing()

    def _look_later(self) -> None:
        self._looking = self.loop.call_later(self.slow_seconds / _LOOKS_PER_LIMIT, self._look)

    def _look(self) -> None:
        began = self._head_began
        if began is not None and self.loop.time() - began >= self.slow_seconds:
            self._shed("head")
        elif self._goes_on_too_slowly():
            self._shed("body")
        elif self._reads_too_slowly():
            self._shed("answer")
        else:
            self._look_later()

    @property
    def _answered(self) -> bool:
        """Whether no request is being answered."""
        cycle = cast("Any", self.cycle)  # None before the first request, whatever its type says.
        return cycle is None or bool(cycle.response_complete)

    @property
    def _bytes_least(self) -> float:
        """What has to move between two looks."""
        return self.slow_bytes_per_second * self.slow_seconds / _LOOKS_PER_LIMIT

    def _goes_on_too_slowly(self) -> bool:
        """Whether a body that was answered before its end, and is read by nobody, trickles in."""
        if not (self._in_body and self._answered):
            self._body_seen = None
            return False
        before, self._body_seen = self._body_seen, self._body_bytes
        return before is not None and self._body_bytes - before < self._bytes_least

    def _reads_too_slowly(self) -> bool:
        """Whether nothing to speak of has left since the last look, and nothing was added.

        While writing is paused, or the connection is closing, the buffer only shrinks; a further
        pause means that it was all but empty in between.
        """
        left: int = cast("Any", self.transport).get_write_buffer_size()
        if not left or not (self.flow.write_paused or self.transport.is_closing()):
            self._seen = None
            return False
        before, self._seen = self._seen, (self._pauses, left)
        if before is None or before[0] != self._pauses:
            return False
        return before[1] - left < self._bytes_least

    def _shed(self, stage: str) -> None:
        self._head_began = None
        self.observer.client_shed(stage)
        _log.info("slow_client_shed", stage=stage)
        if stage == "answer":
            # Else the system keeps megabytes of it, for minutes, for somebody who does not read.
            connection = self.transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.transport.abort()


def shedding_protocol(
    *, slow_seconds: float, slow_bytes_per_second: int, observer: ShedObserver
) -> type[SheddingProtocol]:
    """The protocol with these limits, for `uvicorn.Config(http=…)`."""
    limits = {
        "slow_seconds": slow_seconds,
        "slow_bytes_per_second": slow_bytes_per_second,
        "observer": observer,
    }
    return type("SheddingProtocol", (SheddingProtocol,), limits)
