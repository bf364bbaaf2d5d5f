"""The log as it grows, for many readers in one process.

    async with EventFeed(…) as feed:
        page = await feed.page(position, stream=None, type_=None)
        await feed.moved(page.after, seconds=15)

One notification of the database wakes all who wait here; a look at the head each second, while
somebody waits, stands behind it. A reader holds no connection between pages, and at most two pages
are read at a time, so that readers never take the pool from requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import structlog

from gateway.errors import StreamsBusy
from gateway.lease_listing import EVENT_COLUMNS, event_map
from leases.beginning import beginning_of
from leases.database import Database
from leases.engine import LeaseEngine
from leases.errors import Corrupt, Failure

# Proxies give up on what is silent for a minute, and some after thirty seconds.
_BEAT_SECONDS = 15.0
_SEND_SECONDS_MAX = 30.0
PAGE_EVENTS = 200  # About a hundred kilobytes, which is what a slow reader may keep us holding.
_POLL_SECONDS = 1.0
_CHANNEL = "mpack_events"
_READERS_AT_ONCE = 2
# At the end of a log that grows all the while; a read costs this process about half a millisecond.
_READS_PER_SECOND = 400
# So many positions are looked through for what a filter wants, before the reader is told how far
# it has come; in one piece a rare type would be searched for in the whole log.
_WINDOW_POSITIONS = 10_000
_PAGE = f"""
SELECT {EVENT_COLUMNS} FROM events
WHERE position > $1 AND position <= $2
  AND ($3::text IS NULL OR stream = $3) AND ($4::text IS NULL OR type = $4)
ORDER BY position LIMIT {PAGE_EVENTS}
"""  # noqa: S608  constants

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedPage:
    """Some events, and the position behind which the next ones are."""

    events: list[dict[str, Any]]
    after: int


class EventFeed:
    """Tells readers when the log has moved on, and reads it for them. An async context manager."""

    def __init__(self, database: Database, engine: LeaseEngine, *, streams_max: int) -> None:
        self._database = database
        self._engine = engine
        self._streams_max = streams_max
        self._turns = asyncio.Semaphore(_READERS_AT_ONCE)
        self._changed = asyncio.Event()
        self._wanted = asyncio.Event()
        self._tasks = asyncio.TaskGroup()
        self._polling: asyncio.Task[None] | None = None
        self.beat_seconds = _BEAT_SECONDS
        self.send_seconds_max = _SEND_SECONDS_MAX
        self.streams = 0
        self.head = 0
        self.closing = False

    async def __aenter__(self) -> Self:
        self.head = (await self._engine.log.head())["position"]
        await self._engine.instance.listen(_CHANNEL, self._heard)
        self._tasks = await asyncio.TaskGroup().__aenter__()
        self._polling = self._tasks.create_task(self._poll())
        return self

    async def __aexit__(self, *_error: object) -> None:
        assert self._polling is not None
        self.close()
        self._polling.cancel()
        await self._tasks.__aexit__(None, None, None)

    def close(self) -> None:
        """Let every reader come to an end; the gateway is stopping."""
        self.closing = True
        self._tell()

    @property
    def pace_seconds(self) -> float:
        """How long each reader rests between two reads, so that all together read so often."""
        return self.streams / _READS_PER_SECOND

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Count a reader in for the time of the block. Errors: StreamsBusy."""
        if self.streams >= self._streams_max or self.closing:
            raise StreamsBusy
        self.streams += 1
        self._wanted.set()
        try:
            yield
        finally:
            self.streams -= 1
            if not self.streams:
                self._wanted.clear()

    async def newest(self) -> int:
        """The head's position now, asked of the database. Errors: DatabaseUnavailable."""
        self._move((await self._engine.log.head())["position"])
        return self.head

    async def beginning(self) -> int:
        """The last position that was archived; 0: none. Errors: DatabaseUnavailable."""
        return (await beginning_of(self._database)).position

    async def moved(self, after: int, *, seconds: float) -> bool:
        """Wait until the log has moved on behind `after`, for a while, or until the end."""
        try:
            async with asyncio.timeout(seconds):
                while self.head <= after and not self.closing:
                    await self._changed.wait()
        except TimeoutError:
            pass
        return self.head > after

    async def page(self, after: int, *, stream: str | None, type_: str | None) -> FeedPage:
        """The next events, in order; perhaps none of those that a filter wants.

        Errors: DatabaseUnavailable; Corrupt when a position is missing: that is never a matter of
                waiting, because the log has no holes.
        """
        until = min(self.head, after + _WINDOW_POSITIONS)
        async with self._turns:
            rows = await self._database.fetch(_PAGE, after, until, stream, type_)
        events = [event_map(row) for row in rows]
        if stream is None and type_ is None:
            expected = range(after + 1, min(until, after + PAGE_EVENTS) + 1)
            if [event["position"] for event in events] != list(expected):
                raise Corrupt("The log has a hole.", after=after)
        full = len(events) == PAGE_EVENTS
        return FeedPage(events=events, after=events[-1]["position"] if full else until)

    def _heard(self, payload: str) -> None:
        if payload.isascii() and payload.isdigit():
            self._move(int(payload))

    def _move(self, position: int) -> None:
        if position > self.head:
            self.head = position
            self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _poll(self) -> None:
        while True:
            await self._wanted.wait()
            await self._engine.clock.sleep(_POLL_SECONDS)
            try:
                await self.newest()
            except Failure as failure:
                _log.debug("feed_not_polled", error=failure.code)
