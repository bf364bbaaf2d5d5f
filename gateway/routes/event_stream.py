"""`/v1/events` as server-sent events: the log as it grows.

Each event's `id` is its position, so that a client that comes back with `Last-Event-ID`, to this
replica or another one, misses nothing and sees nothing twice. A client that does not read is cut
off: until then it keeps one page of events, and no connection to the database.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog
from prometheus_client import Gauge
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from gateway.errors import Forbidden, Unauthorized
from gateway.event_feed import PAGE_EVENTS, EventFeed
from gateway.middleware import EVENT_STREAM
from gateway.wire.render import json_bytes
from leases.errors import Unavailable
from leases.ports import Clock

_AGAIN_SECONDS = 1.0  # While the database is away.
_RETRY_MS = 1000

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Where a reader begins, and what it wants."""

    after: int
    stream: str | None
    type_: str | None


class EventStream(Response):
    """The answer that does not end before the client, the token or the gateway does.

    `check` is asked again with every beat; it raises when the caller may not read any more.
    """

    def __init__(
        self,
        feed: EventFeed,
        wanted: Wanted,
        *,
        check: Callable[[], Awaitable[object]],
        clock: Clock,
        gauge: Gauge,
    ) -> None:
        self._feed, self._wanted = feed, wanted
        self._check, self._clock, self._gauge = check, clock, gauge

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        with self._feed.stream(), self._gauge.track_inprogress():
            hung_up = asyncio.ensure_future(_hung_up(receive))
            telling = asyncio.ensure_future(self._tell(_Sender(send, self._feed.send_seconds_max)))
            try:
                await asyncio.wait((hung_up, telling), return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (hung_up, telling):
                    task.cancel()
                outcomes = await asyncio.gather(hung_up, telling, return_exceptions=True)
            for outcome in outcomes:
                if isinstance(outcome, Exception):
                    raise outcome

    async def _tell(self, sender: _Sender) -> None:
        feed, wanted, after = self._feed, self._wanted, self._wanted.after
        await sender.start()
        await sender.chunk(b"retry: %d\nid: %d\n\n" % (_RETRY_MS, after))
        beat_at = self._clock.monotonic() + feed.beat_seconds
        while not feed.closing:
            left = beat_at - self._clock.monotonic()
            if left <= 0:
                if not await self._may_go_on():
                    break
                # An id without data is remembered by the client, and not shown.
                await sender.chunk(b": alive\nid: %d\n\n" % after)
                beat_at = self._clock.monotonic() + feed.beat_seconds
            elif await feed.moved(after, seconds=left) and not feed.closing:
                try:
                    page = await feed.page(after, stream=wanted.stream, type_=wanted.type_)
                except Unavailable:
                    await self._clock.sleep(_AGAIN_SECONDS)
                    continue
                after = page.after
                if page.events:
                    await sender.chunk(b"".join(framed(event) for event in page.events))
                if len(page.events) < PAGE_EVENTS and after >= feed.head:
                    await self._clock.sleep(feed.pace_seconds)
        await sender.end()

    async def _may_go_on(self) -> bool:
        try:
            await self._check()
        except (Unauthorized, Forbidden):
            return False
        except Unavailable:
            return True  # Nobody can say that the token was revoked.
        return True


def framed(event: dict[str, object]) -> bytes:
    """One event. It has no `event:` line: a browser would drop types that it was not told of."""
    position = event["position"]
    assert isinstance(position, int)
    return b"id: %d\ndata: %b\n\n" % (position, json_bytes(event))


class _Sender:
    """Sends, and does not wait for ever for somebody who does not read."""

    def __init__(self, send: Send, seconds_max: float) -> None:
        self._send = send
        self._seconds_max = seconds_max

    async def start(self) -> None:
        headers = {
            "content-type": f"{EVENT_STREAM}; charset=utf-8",
            "cache-control": "no-store",
            "vary": "Accept",
            "x-accel-buffering": "no",
        }
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": 200, "headers": raw})

    async def chunk(self, body: bytes) -> None:
        await self._sent({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self) -> None:
        await self._sent({"type": "http.response.body", "body": b"", "more_body": False})

    async def _sent(self, message: Message) -> None:
        try:
            async with asyncio.timeout(self._seconds_max):
                await self._send(message)
        except TimeoutError as error:
            _log.warning("event_stream_cut", seconds=self._seconds_max)
            raise ClientDisconnect from error


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
