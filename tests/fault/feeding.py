"""Both ends of the feed: writers on connections of their own, and readers who check what they read.

A reader knows the replicas' addresses. Whatever ends its stream, it comes back with the id of the
last whole event, to another replica.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import random
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count, cycle
from typing import Any

import httpx2

from leases.clock import SystemClock
from leases.errors import DatabaseUnavailable
from leases.log import EventLog
from leases.postgres_ledger import PostgresLedger
from tests.leasing import another_database, note

WRITERS = 16
EVENTS_PER_SECOND = 200.0  # As many as leases fall due in the benchmark of lateness.
_ACCEPT = {"Accept": "text/event-stream"}
_COMES_BACK_SECONDS = 0.05
# A replica that neither answers nor hangs up; its beats are 15 s apart.
_SILENCE_SECONDS_MAX = 40.0


async def write(url: str, seconds: float, seed: int, per_second: float = EVENTS_PER_SECOND) -> int:
    """Sixteen writers, each with a log and a connection of its own; how many events they wrote."""
    clock, written = SystemClock(), count()
    until = clock.monotonic() + seconds

    async def one(number: int, log: EventLog) -> None:
        chance = random.Random(f"{seed}/{number}")
        while clock.monotonic() < until:
            await clock.sleep(chance.uniform(0, 2 * WRITERS / per_second))
            with suppress(DatabaseUnavailable):
                await log.append([note(f"repo/{number}", expected=None)])
                next(written)

    async with AsyncExitStack() as stack, asyncio.TaskGroup() as batchers:
        running, writers = [], []
        for number in range(WRITERS):
            database = await stack.enter_async_context(another_database(url))
            log = EventLog(PostgresLedger(database), clock)
            running.append(batchers.create_task(log.run()))
            writers.append(one(number, log))
        await asyncio.gather(*writers)
        for task in running:
            task.cancel()
    return next(written)


def _write_in_process(url: str, seconds: float, seed: int) -> None:
    asyncio.run(write(url, seconds, seed))


class WritersProcess:
    """The writers in a process of their own, which may be killed."""

    def __init__(self, url: str, seconds: float, seed: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._process = spawn.Process(target=_write_in_process, args=(url, seconds, seed))
        self._process.start()

    def kill(self) -> None:
        """Kill -9, in the middle of sixteen appends."""
        self._process.kill()
        self._process.join()

    async def ended(self) -> None:
        """Wait until they have written enough."""
        await asyncio.to_thread(self._process.join)
        assert self._process.exitcode in (0, -signal.SIGKILL), self._process.exitcode


@dataclass(slots=True, kw_only=True)
class Reader:
    """Reads from the beginning; `events` holds what arrived: position, event id, wall time.

    It begins with the first of the replicas, and goes on to the next one whenever a stream ends.
    """

    urls: Sequence[str]
    token: str
    events: list[tuple[int, str, float]] = field(default_factory=list)
    streams: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def last(self) -> int:
        """The position that it stands at."""
        return self.events[-1][0] if self.events else 0

    async def read(self) -> None:
        """For ever; whoever wants to hear no more cancels it."""
        clock = SystemClock()
        async with httpx2.AsyncClient(timeout=_SILENCE_SECONDS_MAX, trust_env=False) as http:
            for url in cycle(self.urls):
                with suppress(httpx2.TransportError):
                    await self._stream(http, url)
                await clock.sleep(_COMES_BACK_SECONDS)

    async def _stream(self, http: httpx2.AsyncClient, url: str) -> None:
        headers = {**_ACCEPT, "Authorization": f"Bearer {self.token}"}
        headers["Last-Event-ID"] = str(self.last)
        async with http.stream("GET", f"{url}/v1/events", headers=headers) as response:
            if response.status_code == 503:  # It is starting or stopping.
                return
            assert response.status_code == 200, await response.aread()
            self.streams += 1
            async for event in _frames(response):
                self.take(event)

    def take(self, event: dict[str, Any]) -> None:
        """One event arrived."""
        position = event["position"]
        if position != self.last + 1:
            self.problems.append(f"{position} came after {self.last}")
        self.events.append((position, event["event_id"], SystemClock().now().timestamp()))


async def _frames(response: httpx2.Response) -> AsyncIterator[dict[str, Any]]:
    """The events of whole frames; what is cut off in the middle never was."""
    waiting = b""
    async for piece in response.aiter_bytes():
        *frames, waiting = (waiting + piece).split(b"\n\n")
        for frame in frames:
            fields = dict(line.split(b": ", 1) for line in frame.splitlines())
            if b"data" in fields:
                event: dict[str, Any] = json.loads(fields[b"data"])
                assert int(fields[b"id"]) == event["position"]
                yield event


@asynccontextmanager
async def reading(readers: Sequence[Reader]) -> AsyncIterator[None]:
    """All of them read for the time of the block."""
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(reader.read()) for reader in readers]
        yield
        for task in running:
            task.cancel()
