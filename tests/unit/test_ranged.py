"""Open content is closed, however its answer ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from gateway.routes.byte_ranges import RangeUnsatisfiable
from gateway.routes.ranged import ranged_response

DATA = b"0123456789"
BLOCK_BYTES = 256 * 1024
UVICORN = {"type": "http", "asgi": {"spec_version": "2.3"}}


class Content:
    def __init__(self, size_bytes: int = len(DATA)) -> None:
        self.size_bytes = size_bytes
        self.read = self.closed = 0

    async def chunks(self, start: int, stop: int) -> AsyncIterator[bytes]:
        assert not self.closed
        for at in range(start, stop, BLOCK_BYTES):
            self.read += 1
            await asyncio.sleep(0)
            yield DATA[at:stop] if stop <= len(DATA) else bytes(min(BLOCK_BYTES, stop - at))

    async def close(self) -> None:
        self.closed += 1


def request(method: str = "GET", **headers: str) -> Request:
    sent = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": method, "path": "/", "headers": sent})


async def receive() -> Message:
    return {"type": "http.disconnect"}


async def test_a_caller_who_leaves_before_the_first_byte() -> None:
    content = Content()
    response = await ranged_response(request(), content, etag='"e"', cache_control="no-store")

    async def send(_message: Message) -> None:
        raise OSError

    with pytest.raises(ClientDisconnect):
        await response({"type": "http", "asgi": {"spec_version": "2.4"}}, receive, send)
    assert content.closed == 1


async def test_nobody_watches_the_caller_of_a_small_answer() -> None:
    """The task that would costs more than reading it for nobody."""
    content = Content(2 * BLOCK_BYTES)
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def never() -> Message:
        raise AssertionError

    response = await ranged_response(request(), content, etag='"e"', cache_control="no-store")
    await response(UVICORN, never, send)
    assert sum(len(message.get("body", b"")) for message in sent) == content.size_bytes
    assert content.closed == 1


async def test_a_large_answer_is_not_read_on_for_a_caller_who_has_left() -> None:
    content = Content(1000 * BLOCK_BYTES)

    async def send(_message: Message) -> None:
        """Says nothing of a caller who has left, as uvicorn's does."""

    response = await ranged_response(request(), content, etag='"e"', cache_control="no-store")
    await response(UVICORN, receive, send)
    assert content.read < 10
    assert content.closed == 1


@pytest.mark.parametrize(
    "asked, status",
    [
        (request(), 200),
        (request(range="bytes=2-3"), 206),
        (request("HEAD"), 200),
        (request(if_none_match='"e"'), 304),
    ],
    ids=["whole", "range", "head", "known"],
)
async def test_every_answer_closes_once(asked: Request, status: int) -> None:
    content = Content()
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    response = await ranged_response(asked, content, etag='"e"', cache_control="no-store")
    await response({"type": "http", "asgi": {"spec_version": "2.4"}}, receive, send)
    assert (sent[0]["status"], content.closed) == (status, 1)


async def test_a_refused_range_closes() -> None:
    content = Content()
    with pytest.raises(RangeUnsatisfiable):
        await ranged_response(
            request(range="bytes=99-"), content, etag='"e"', cache_control="no-store"
        )
    assert content.closed == 1
