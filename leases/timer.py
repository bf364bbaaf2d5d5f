"""One wake-up at a time on the wall clock: APScheduler, with a single job in a memory store."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.date import DateTrigger

_JOB_ID = "reap"
# A fire takes microseconds; this only has to be more than APScheduler sees unfinished at a time.
_FIRES_AT_ONCE_MAX = 1000


class Timer(Protocol):
    """A hint about when to look again; a clock that jumps may make it late, or lose it."""

    def start(self) -> None: ...

    def set(self, at: datetime, fire: Callable[[], None]) -> None:
        """Fire at this time of the process's clock, and not when it was set to before."""

    def stop(self) -> None: ...


class SchedulerTimer:
    """APScheduler's."""

    def __init__(self) -> None:
        self.scheduler = AsyncIOScheduler(timezone="UTC")

    def start(self) -> None:
        self.scheduler.start()

    def set(self, at: datetime, fire: Callable[[], None]) -> None:
        async def job() -> None:  # Run in the loop; a plain function would get a thread.
            fire()

        self.scheduler.add_job(
            job,
            DateTrigger(run_date=at),
            id=_JOB_ID,
            replace_existing=True,
            # The default of one second silently drops a job that a busy loop makes late.
            misfire_grace_time=None,
            coalesce=True,
            # A fire re-arms before it has ended; the default of one would drop the next fire.
            max_instances=_FIRES_AT_ONCE_MAX,
        )

    def stop(self) -> None:
        self.scheduler.shutdown(wait=False)
