"""The log as it grows, over HTTP: gapless, resumable anywhere, and at nobody's expense."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from leases.clock import SystemClock
from leases.log import NewEvent
from tests.integration.gateways import LiveGateway, serving, settings_for
from tests.leasing import note, until

ACCEPT = {"Accept": "text/event-stream"}
PATIENCE_SECONDS = 15


class Stream:
    """One open stream, read frame by frame."""

    def __init__(self, response: httpx2.Response) -> None:
        self.response = response
        self._lines = response.aiter_lines()
        self.last_id = ""

    async def frame(self) -> dict[str, str]:
        """The next frame's fields; empty at the end of the stream."""
        found: dict[str, str] = {}
        async with asyncio.timeout(PATIENCE_SECONDS):
            async for line in self._lines:
                if not line:
                    break
                name, _, value = line.partition(":")
                found[name or "comment"] = value.strip()
        self.last_id = found.get("id", self.last_id)
        return found

    async def event(self) -> dict[str, Any]:
        """The next event, past beats."""
        while "data" not in (frame := await self.frame()):
            assert frame, "the stream has ended"
        event: dict[str, Any] = json.loads(frame["data"])
        assert frame["id"] == str(event["position"])
        return event

    async def positions(self, count: int) -> list[int]:
        return [(await self.event())["position"] for _ in range(count)]


@asynccontextmanager
async def opened(
    gateway: LiveGateway, query: str = "", *, last: str | None = None, token: str | None = None
) -> AsyncIterator[Stream]:
    """A stream whose first frame, the way back, has been read."""
    token = token or await gateway.token("admin")
    headers = ACCEPT | {"Authorization": f"Bearer {token}"}
    if last is not None:
        headers["Last-Event-ID"] = last
    async with gateway.http.stream(
        "GET", f"{gateway.url}/v1/events{query}", headers=headers
    ) as response:
        assert response.status_code == 200, await response.aread()
        stream = Stream(response)
        assert "retry" in await stream.frame()
        yield stream


async def append(gateway: LiveGateway, *events: NewEvent) -> None:
    await gateway.service.engine.log.append(events)


async def appended(gateway: LiveGateway, count: int, *, start: int = 0) -> None:
    """So many events, each in a call of its own."""
    for number in range(start, start + count):
        await append(gateway, note(f"repo/{number}"))


async def test_events_come_as_they_are_appended(live_gateway: LiveGateway) -> None:
    await appended(live_gateway, 2)
    async with opened(live_gateway) as stream:
        assert stream.response.headers["content-type"].startswith("text/event-stream")
        await append(live_gateway, note("repo/new"))
        event = await stream.event()
        assert (event["position"], event["stream"], event["data"]) == (3, "repo/new", {"n": 1})
        page = await live_gateway.service.listing.events(after=2)
        assert page.rows[0]["hash"] == event["hash"]


async def test_a_reader_who_comes_back_to_another_replica_misses_nothing(
    live_gateway: LiveGateway,
) -> None:
    settings = replace(live_gateway.service.settings, public_url=None)
    async with serving(settings) as other:
        async with opened(live_gateway, "?after=0") as stream:
            await appended(live_gateway, 300)
            seen = await stream.positions(250)
        await appended(other, 50, start=300)
        async with opened(other, last=stream.last_id) as stream:
            seen += await stream.positions(100)
    assert seen == list(range(1, 351))


async def test_a_filter_tells_how_far_it_has_come(live_gateway: LiveGateway) -> None:
    """So that a client which comes back does not have the log searched again from where it was."""
    live_gateway.service.feed.beat_seconds = 0.2
    async with opened(live_gateway, "?stream=repo/wanted") as stream:
        await appended(live_gateway, 5)
        while stream.last_id != "5":
            assert "data" not in await stream.frame()
        await append(live_gateway, note("repo/wanted"))
        assert await stream.positions(1) == [6]


async def test_a_lost_notification_costs_a_second(live_gateway: LiveGateway) -> None:
    async with opened(live_gateway) as stream:
        live_gateway.service.engine.instance._listeners.clear()
        await appended(live_gateway, 3)
        assert await stream.positions(3) == [1, 2, 3]


async def test_a_hole_cuts_the_stream(live_gateway: LiveGateway) -> None:
    """Passing over it would tell every reader that nothing was there."""
    await appended(live_gateway, 3)
    async with live_gateway.service.database.driver() as driver:
        await driver.execute("SET session_replication_role = replica")
        await driver.execute("DELETE FROM events WHERE position = 2")
    with pytest.raises(httpx2.RemoteProtocolError):
        async with opened(live_gateway, "?after=0") as stream:
            await stream.frame()


async def test_stopping_ends_the_streams_and_takes_no_time(
    database_url: str, tmp_path: Path
) -> None:
    clock = SystemClock()
    async with serving(settings_for(database_url, tmp_path / "data")) as gateway:
        service = gateway.service
        async with opened(gateway) as stream:
            service.stopping = True
            service.feed.close()
            assert await stream.frame() == {}
        answer = await gateway.call("GET", "/readyz")
        assert (answer.status, answer.body["status"]) == (503, "stopping")
        again = await gateway.call(
            "GET", "/v1/events", token=await gateway.token("admin"), headers=ACCEPT
        )
        assert (again.status, again.body["code"]) == (503, "streams_busy")
        service.stopping = service.feed.closing = False
        token = await gateway.token("admin")
        response = gateway.http.stream(
            "GET", gateway.url + "/v1/events", headers=ACCEPT | {"Authorization": f"Bearer {token}"}
        )
        await response.__aenter__()
        began = clock.monotonic()
    assert clock.monotonic() - began < 3
    assert service.feed.streams == 0


async def test_a_reader_who_does_not_read_is_cut_off(live_gateway: LiveGateway) -> None:
    """And keeps meanwhile neither a connection to the database nor more than a page."""
    service = live_gateway.service
    service.feed.send_seconds_max = 0.5
    big = {"text": "x" * 10_000}
    for start in range(0, 2000, 500):
        events = [note(f"repo/{start + n}", data=big) for n in range(500)]
        await service.engine.log.append(events)
    token = await live_gateway.token("admin")
    reader, writer = await asyncio.open_connection("127.0.0.1", live_gateway.port, limit=1000)
    request = "GET /v1/events?after=0 HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n"
    writer.write(f"{request}Authorization: Bearer {token}\r\n\r\n".encode())
    await reader.readline()

    async def there() -> bool:
        return service.feed.streams == 1

    async def gone() -> bool:
        return service.feed.streams == 0

    try:
        await until(there)
        await until(gone)
    finally:
        writer.close()
    async with opened(live_gateway, "?after=1990") as stream:
        assert await stream.positions(10) == list(range(1991, 2001))


async def test_the_end_of_a_token_ends_its_stream(live_gateway: LiveGateway) -> None:
    service = live_gateway.service
    service.feed.beat_seconds = 0.1
    token = await live_gateway.token("admin")
    async with opened(live_gateway, token=token) as stream:
        assert "comment" in await stream.frame()
        assert (await service.tokens.verify(token)).token_id is not None
        await service.database.execute("UPDATE api_tokens SET revoked_at = now()")
        while await stream.frame():
            pass


async def test_the_more_there_are_the_longer_each_rests(live_gateway: LiveGateway) -> None:
    """All of them together ask the database for the end of the log as often as one would."""
    feed = live_gateway.service.feed
    async with opened(live_gateway):
        alone = feed.pace_seconds
        async with opened(live_gateway), opened(live_gateway):
            assert feed.pace_seconds == pytest.approx(3 * alone)
    assert alone < 0.005  # Nobody notices it.


async def test_there_are_only_so_many(database_url: str, tmp_path: Path) -> None:
    settings = settings_for(database_url, tmp_path / "data", event_streams_max=1)
    async with serving(settings) as gateway:
        token = await gateway.token("admin")
        async with opened(gateway, token=token):
            answer = await gateway.call("GET", "/v1/events", token=token, headers=ACCEPT)
            assert (answer.status, answer.body["code"]) == (503, "streams_busy")
            assert (await gateway.call("GET", "/v1/events", token=token)).status == 200


@pytest.mark.parametrize(
    "query, last, status",
    [
        ("?after=1", None, 400),
        ("?limit=5", None, 400),
        ("?type=" + "x" * 301, None, 400),
        ("", "99", 400),
        ("", "soon", 400),
        ("", "-1", 400),
    ],
)
async def test_a_beginning_that_never_was_is_refused(
    live_gateway: LiveGateway, query: str, last: str | None, status: int
) -> None:
    headers = ACCEPT | ({} if last is None else {"Last-Event-ID": last})
    token = await live_gateway.token("admin")
    answer = await live_gateway.call("GET", "/v1/events" + query, token=token, headers=headers)
    assert answer.status == status
    assert len(answer.body["message"]) > 10


@pytest.mark.parametrize("scopes, status", [(["push"], 403), ([], 401)])
async def test_the_feed_is_for_operators(
    live_gateway: LiveGateway, scopes: list[str], status: int
) -> None:
    token = await live_gateway.token(*scopes) if scopes else None
    answer = await live_gateway.call("GET", "/v1/events", token=token, headers=ACCEPT)
    assert answer.status == status
