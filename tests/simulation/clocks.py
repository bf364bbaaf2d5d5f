"""A process's clocks and its alarm's timer, on simulated time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
# A timer may wake this much too early, because times have whole microseconds.
_EARLY = timedelta(microseconds=2)


class SimulatedClock:
    """Monotonic time is the world's; the wall clock is wrong by `shift`, which may change."""

    def __init__(self, loop: asyncio.AbstractEventLoop, shift: timedelta = timedelta()) -> None:
        self._loop = loop
        self.shift = shift

    def now(self) -> datetime:
        return EPOCH + timedelta(seconds=self._loop.time()) + self.shift

    def monotonic(self) -> float:
        return self._loop.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class SimulatedTimer:
    """As APScheduler behaves: it sleeps by monotonic time, and then compares wall time, so that a
    wall clock that was set back keeps it waiting, and one set forward is noticed late.
    """

    def __init__(self, clock: SimulatedClock) -> None:
        self._clock = clock
        self._handle: asyncio.TimerHandle | None = None
        self._job: tuple[datetime, Callable[[], None]] | None = None
        self._started = False

    def start(self) -> None:
        self._started = True
        self._wait()

    def set(self, at: datetime, fire: Callable[[], None]) -> None:
        self._job = (at, fire)
        if self._started:
            self._wait()

    def stop(self) -> None:
        self._started = False
        if self._handle is not None:
            self._handle.cancel()

    def _wait(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        if self._job is not None:
            delay = (self._job[0] - self._clock.now()).total_seconds()
            loop = asyncio.get_running_loop()
            self._handle = loop.call_later(max(0.0, delay), self._woken)

    def _woken(self) -> None:
        assert self._job is not None
        at, fire = self._job
        if self._clock.now() + _EARLY < at:
            self._wait()
        else:
            self._job = None
            fire()
