"""Ids, summary lines, limits on bodies, and answers to errors, over real sockets."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from gateway.logs import configure
from gateway.wire.limits import WireLimits
from tests.integration.gateways import LiveGateway, serving, settings_for
from tests.stores import ON_S3

SMALL = WireLimits(
    body_bytes_max=100_000,
    ids_body_bytes_max=100_000,
    record_bytes_max=50_000,
    message_bytes_max=10_000,
)


@pytest.fixture
async def strict_gateway(database_url: str, tmp_path: Path) -> AsyncIterator[LiveGateway]:
    """A gateway with tight limits on bodies."""
    settings = settings_for(database_url, tmp_path / "data", wire=SMALL, body_timeout_seconds=0.3)
    async with serving(settings) as gateway:
        yield gateway


@pytest.fixture
def log(logging_restored: None) -> io.StringIO:
    stream = io.StringIO()
    configure(log_format="json", level="debug", stream=stream)
    return stream


def told(log: io.StringIO, event: str) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    return [line for line in lines if line["event"] == event]


async def raw(gateway: LiveGateway, *parts: bytes) -> tuple[bytes, bytes]:
    """Write these bytes; the head and the body of the answer, to the connection's end."""
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        async with asyncio.timeout(10):
            answer = await reader.read()
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return head, body


async def test_a_sane_request_id_is_kept_and_another_replaced(live_gateway: LiveGateway) -> None:
    kept = await live_gateway.call("GET", "/livez", headers={"X-Request-Id": "abc-1.2_3"})
    assert kept.headers["x-request-id"] == "abc-1.2_3"
    for bad in ("", "a b", "x" * 65, "a\tb"):
        made = await live_gateway.call("GET", "/livez", headers={"X-Request-Id": bad})
        assert len(made.headers["x-request-id"]) == 16


async def test_one_line_a_request_without_its_query(
    log: io.StringIO, live_gateway: LiveGateway
) -> None:
    path = "/blobs/transient/a/b?expires=1&signature=5ec7e7"
    answer = await live_gateway.call("GET", path, headers={"X-Request-Id": "r1"})
    assert answer.status == (404 if ON_S3 else 403)
    (line,) = told(log, "request")
    assert line["path"] == "/blobs/transient/a/b"
    assert (line["method"], line["status"], line["request_id"]) == ("GET", answer.status, "r1")
    assert line["answer_bytes"]
    assert line["duration_ms"]
    assert "5ec7e7" not in log.getvalue()


async def test_probes_are_quiet(log: io.StringIO, live_gateway: LiveGateway) -> None:
    await live_gateway.call("GET", "/livez")
    assert [line["level"] for line in told(log, "request")] == ["debug"]


async def test_a_declared_length_over_the_limit_is_refused_at_once(
    strict_gateway: LiveGateway,
) -> None:
    """Nothing but the head was sent, and the answer is there."""
    head, body = await raw(
        strict_gateway,
        b"POST /o/r/fetch HTTP/1.1\r\nHost: x\r\nContent-Length: 100001\r\n\r\n" + b"x" * 100_001,
    )
    assert head.startswith(b"HTTP/1.1 413 ")
    assert b"too_large" in body
    assert b"connection: close" in head.lower()


async def test_a_whole_body_that_is_refused_is_not_waited_for(strict_gateway: LiveGateway) -> None:
    """Nothing of it is left to read, so the connection stays."""
    await strict_gateway.repo("o/r")
    asked = {"want": ["x" * 1000], "have": []}
    answer = await strict_gateway.call("POST", "/o/r/negotiate", asked)
    assert answer.status == 413
    assert "connection" not in answer.headers


async def test_a_chunked_body_is_refused_when_it_passes_the_limit(
    strict_gateway: LiveGateway,
) -> None:
    await strict_gateway.repo("o/r")
    token = await strict_gateway.token("push")
    start = (
        b"POST /o/r/push HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
        b"Authorization: Bearer " + token.encode() + b"\r\n\r\n"
    )
    chunk = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
    head, body = await raw(strict_gateway, start, *[chunk] * 7, b"0\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413 ")
    assert b"100,000 bytes" in body


async def test_a_body_that_does_not_come_is_408(strict_gateway: LiveGateway) -> None:
    await strict_gateway.repo("o/r")
    token = await strict_gateway.token("push")
    host, port = strict_gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"POST /o/r/push HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n"
        b"Authorization: Bearer " + token.encode() + b"\r\n\r\nabc"
    )
    async with asyncio.timeout(10):
        assert await reader.readline() == b"HTTP/1.1 408 Request Timeout\r\n"
    writer.close()


async def test_bodies_together_are_bounded(database_url: str, tmp_path: Path) -> None:
    settings = settings_for(database_url, tmp_path / "data", bodies_bytes_max=1000)
    async with serving(settings) as gateway:
        await gateway.repo("o/r")
        token = await gateway.token("push")
        answer = await gateway.call("POST", "/o/r/push", b"x" * 2000, token=token)
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        # What was held is given back.
        answer = await gateway.call("POST", "/o/r/push", b"x" * 900, token=token)
        assert answer.status == 422


async def test_a_bug_is_a_500_without_its_detail(
    log: io.StringIO, live_gateway: LiveGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("the inside of the machine")

    monkeypatch.setattr(live_gateway.service.listing, "leases", fail)
    answer = await live_gateway.call(
        "GET", "/v1/leases", token=await live_gateway.token("admin"), headers={"X-Request-Id": "r9"}
    )
    assert answer.status == 500
    assert answer.body == {
        "message": "Something went wrong here; it has been recorded.",
        "code": "internal",
        "request_id": "r9",
    }
    (line,) = told(log, "request_failed")
    assert (line["error"], line["request_id"]) == ("ZeroDivisionError", "r9")
    assert "the inside of the machine" in log.getvalue()


async def test_an_answer_that_breaks_off_is_cut_not_ended(
    live_gateway: LiveGateway, log: io.StringIO
) -> None:
    """A chunked answer with its end would be taken for the whole."""

    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise ZeroDivisionError

    async def endpoint(_request: Request) -> Response:
        return StreamingResponse(broken())

    live_gateway.app.router.routes.insert(0, Route("/broken", endpoint))
    head, body = await raw(live_gateway, b"GET /broken HTTP/1.1\r\nHost: x\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"half" in body
    assert not body.endswith(b"0\r\n\r\n")
    assert told(log, "answer_cut")


@pytest.mark.parametrize("accept", ["application/json", "application/x-msgpack", "*/*", ""])
async def test_errors_take_the_form_that_is_read(live_gateway: LiveGateway, accept: str) -> None:
    answer = await live_gateway.call("GET", "/nothing/here", headers={"Accept": accept})
    assert answer.status == 404
    assert set(answer.body) == {"message", "code", "request_id"}
    form = "x-msgpack" if accept == "application/x-msgpack" else "json"
    assert answer.headers["content-type"] == f"application/{form}"
