"""When to look: one APScheduler job, set to the table's earliest due time.

The table is the queue; this only decides when a worker looks at it. One date job in a memory
store, whatever the number of leases; own activations arm it at once, everybody's are found by a
look-ahead query twice a second. The job only wakes the workers. Losing it, or a wall clock that
jumps (APScheduler compares wall time), delays a cleanup to the next look-ahead; the look-ahead
itself runs on the monotonic clock and wakes the workers directly for whatever is overdue.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from datetime import datetime, timedelta

import structlog

from leases.chance import chance
from leases.database_clock import DatabaseClock
from leases.errors import Failure
from leases.ledger import Ledger
from leases.policy import LeasePolicy
from leases.ports import Clock
from leases.timer import SchedulerTimer, Timer

# Fires keep a distance between these. A claim costs about the same for one lease as for ten, so at
# hundreds of deadlines a second fewer, larger claims are what keeps a busy loop free; on a free one
# they would only be late. How late the timer itself is says which it is (`make bench`, lateness).
_REARM_SECONDS_MIN = 0.002
_REARM_SECONDS_MAX = 0.02
_DISTANCE_PER_LATENESS = 2.0
_LATENESS_WEIGHT = 0.1  # Of the newest fire, against all before it.
# Own deadlines kept in memory; beyond these a lease is found by the look-ahead like anybody's.
_OWN_DEADLINES_MAX = 100_000

_log = structlog.get_logger(__name__)


class Alarm:
    """Wakes the workers when something is due.

    `run()` is the look-ahead; `arm()` tells of a lease that this process has just granted.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        policy: LeasePolicy,
        clock: Clock,
        wake: Callable[[], None],
        database_clock: DatabaseClock,
        timer: Timer | None = None,
    ) -> None:
        self._ledger = ledger
        self._policy = policy
        self._clock = clock
        self._wake = wake
        self._database_clock = database_clock
        self._timer = timer or SchedulerTimer()
        self._armed_at: float | None = None
        self._fires_at = 0.0
        self._lateness = 0.0
        self._own: list[float] = []
        self._look_soon = asyncio.Event()

    def arm(self, delete_at: datetime) -> None:
        """This process granted or moved a lease that is due at this time of the database."""
        if not self._policy.alarm_enabled:
            return
        deadline = self._database_clock.monotonic_at(delete_at)
        if len(self._own) < _OWN_DEADLINES_MAX:
            heapq.heappush(self._own, deadline)
        self._arm_at(deadline)

    def look_soon(self) -> None:
        """Look ahead now rather than at the next turn."""
        self._look_soon.set()

    def _arm_at(self, deadline: float) -> None:
        if self._armed_at is not None and deadline >= self._armed_at - 0.001:
            return
        self._armed_at = deadline
        now = self._clock.monotonic()
        self._fires_at = max(deadline, now)
        delay = self._fires_at - now
        self._timer.set(self._clock.now() + timedelta(seconds=delay), self._fired)

    def _fired(self) -> None:
        """The timer's end: note how late it was, and ring."""
        late = max(0.0, self._clock.monotonic() - self._fires_at)
        self._lateness += _LATENESS_WEIGHT * (late - self._lateness)
        self._ring()

    def _ring(self) -> None:
        """Wake a worker, and arm for the next own deadline."""
        self._armed_at = None
        self._wake()
        now = self._clock.monotonic()
        while self._own and self._own[0] <= now:
            heapq.heappop(self._own)
        if self._own:
            self._arm_at(max(self._own[0], now + self._distance()))

    def _distance(self) -> float:
        """Seconds until the next fire, the longer the busier the loop is."""
        wanted = _DISTANCE_PER_LATENESS * self._lateness
        return min(max(_REARM_SECONDS_MIN, wanted), _REARM_SECONDS_MAX)

    async def run(self) -> None:
        """Look ahead, twice a second, for as long as the process lives."""
        self._timer.start()
        try:
            while True:
                try:
                    await self._look()
                except Exception as error:  # noqa: BLE001  without it nothing is seen to be due
                    code = error.code if isinstance(error, Failure) else type(error).__name__
                    _log.warning("look_ahead_failed", error=code)
                await self._pause()
        finally:
            self._timer.stop()

    async def _pause(self) -> None:
        pause = asyncio.ensure_future(self._clock.sleep(self._policy.look_ahead_seconds))
        soon = asyncio.ensure_future(self._look_soon.wait())
        try:
            await asyncio.wait((pause, soon), return_when=asyncio.FIRST_COMPLETED)
        finally:
            pause.cancel()
            soon.cancel()
        if self._look_soon.is_set():
            await self._clock.sleep(_REARM_SECONDS_MAX)
            self._look_soon.clear()

    async def _look(self) -> None:
        asked_at = self._clock.monotonic()
        look = await self._ledger.look_ahead()
        self._database_clock.observe(look.now, asked_at=asked_at)
        if look.dead_claims:
            freed = await self._ledger.free_dead_claims()
            _log.warning("dead_claims_freed", leases=freed)
            self._wake()
        if look.due is None or not self._policy.alarm_enabled:
            return
        due_at = self._database_clock.monotonic_at(look.due)
        if look.live > 1 and not self._is_own(due_at):
            # Its own replica is there first; this one only catches what that one drops.
            due_at += self._policy.non_owner_delay_seconds * chance().uniform(1, 1.2)
        missed = self._armed_at is not None and self._armed_at < asked_at - _REARM_SECONDS_MAX
        if due_at <= asked_at or missed:
            self._ring()
        else:
            self._arm_at(due_at)

    def _is_own(self, due_at: float) -> bool:
        """Whether the earliest due lease is, as far as can be told, one of our own."""
        return bool(self._own) and self._own[0] <= due_at + 0.01
