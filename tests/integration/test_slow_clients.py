"""Slow clients are cut, and others do not notice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from tests.factories import History
from tests.integration.gateways import LiveGateway, serving, settings_for

REFUSED = "POST /o/r/push HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer wrong\r\n"
SECONDS_MAX = 10  # A hang is a failure; how quick it is is for the benchmark.


@pytest.fixture
async def brisk(database_url: str, tmp_path: Path) -> AsyncIterator[LiveGateway]:
    settings = settings_for(
        database_url, tmp_path / "data", slow_seconds=0.4, slow_bytes_per_second=100_000
    )
    async with serving(settings) as gateway:
        yield gateway


@asynccontextmanager
async def connected(
    gateway: LiveGateway,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=2**12)
    try:
        yield reader, writer
    finally:
        writer.close()


async def trickled(gateway: LiveGateway, start: bytes, piece: bytes) -> bytes:
    """Send bit by bit until the gateway has had enough; what it answered."""
    answer = bytearray()

    async def hear(reader: asyncio.StreamReader) -> None:
        # Piece by piece: what is unread when the connection is cut is lost.
        with suppress(ConnectionError):
            while piece := await reader.read(2**12):
                answer.extend(piece)

    async with asyncio.timeout(SECONDS_MAX), connected(gateway) as (reader, writer):
        writer.write(start)
        hearing = asyncio.create_task(hear(reader))
        while not hearing.done():
            writer.write(piece)
            await asyncio.wait((hearing,), timeout=0.02)
    return bytes(answer)


def shed(gateway: LiveGateway, stage: str) -> bool:
    text = gateway.service.metrics.text().decode()
    return f'mpack_slow_clients_total{{stage="{stage}"}} 1.0' in text


async def test_a_head_that_trickles_in_is_cut(brisk: LiveGateway) -> None:
    assert not await trickled(brisk, b"GET /livez HTTP/1.1\r\n", b"X-A: b\r\n")
    assert shed(brisk, "head")


async def test_a_connection_that_says_nothing_is_cut(brisk: LiveGateway) -> None:
    assert not await trickled(brisk, b"", b"")
    assert shed(brisk, "head")


async def test_an_endless_head_is_cut(brisk: LiveGateway) -> None:
    assert not await trickled(brisk, b"GET /livez HTTP/1.1\r\nX: ", b"x" * 20_000)
    assert shed(brisk, "head")


async def test_a_second_head_that_trickles_in_is_cut(brisk: LiveGateway) -> None:
    """The server's own limit ends with the first byte."""
    first = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\nGET /livez HTTP/1.1\r\n"
    answer = await trickled(brisk, first, b"X-A: b\r\n")
    assert answer.count(b"HTTP/1.1 200") == 1
    assert shed(brisk, "head")


async def test_a_body_that_goes_on_behind_its_answer_is_no_head(brisk: LiveGateway) -> None:
    """Most clients send all of it before they read: an answer behind a cut would be lost."""
    size_bytes = 8 * 1024 * 1024
    async with asyncio.timeout(SECONDS_MAX), connected(brisk) as (reader, writer):
        writer.write(f"{REFUSED}Content-Length: {size_bytes}\r\n\r\n".encode())
        answer = await reader.readuntil(b"\r\n\r\n")
        for _ in range(size_bytes // 2**16):
            writer.write(bytes(2**16))
            await writer.drain()
        writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        rest = await reader.read()
        while piece := await reader.read():
            rest += piece
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"HTTP/1.1 200 " in rest


async def test_a_body_that_trickles_on_behind_its_answer_is_cut(brisk: LiveGateway) -> None:
    answer = await trickled(brisk, f"{REFUSED}Content-Length: 1000000\r\n\r\n".encode(), b"x")
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert shed(brisk, "body")


@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_a_body_that_trickles_in_is_408(brisk: LiveGateway, method: str) -> None:
    await brisk.repo("o/r")
    path = "/o/r/fetch"
    if method == "PUT":
        store = brisk.service.store
        if not hasattr(store, "verify"):
            pytest.skip("the uploads of this store do not come this way")
        path = (await store.presign_put("transient/a/b", expires_in=60)).partition(brisk.url)[2]
    start = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n".encode()
    answer = await trickled(brisk, start, b"x")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"body_too_slow" in answer
    assert shed(brisk, "body")


async def test_a_reader_that_stops_reading_is_cut(brisk: LiveGateway) -> None:
    """And what its answer held is free again: nothing is read on, or kept, for nobody."""
    history = History()
    head = history.commit({"large": history.content(bytes(24 * 1024 * 1024))})
    answer = await brisk.push("o/r", history, token=await brisk.token("push"))
    assert answer.status == 200, answer.body
    repo = await brisk.call("GET", "/o/r/refs")
    (object_id,) = head.manifest.values()
    path = f"/o/{object_id}?repo_id={repo.body['repo_id']}"
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    async with asyncio.timeout(SECONDS_MAX), connected(brisk) as (reader, writer):
        writer.write(request)
        await reader.readexactly(100)
        while not shed(brisk, "answer"):
            assert (await brisk.call("GET", "/livez")).status == 200
        # After a close that is not a reset the system would go on sending what it holds: megabytes.
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(24 * 1024 * 1024)


async def test_a_patient_build_is_not_a_slow_client(brisk: LiveGateway) -> None:
    """Who waits for an answer, or reads it at a fair rate, stays."""
    history = History()
    history.commit({"large": history.content(bytes(2 * 1024 * 1024))})
    answer = await brisk.push("o/r", history, token=await brisk.token("push"))
    assert answer.status == 200, answer.body
    assert not any(shed(brisk, stage) for stage in ("head", "body", "answer"))
