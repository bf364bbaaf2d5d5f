"""The database's clock on this process's monotonic one: when did something happen, by its time?"""

from __future__ import annotations

import time
from dataclasses import dataclass

from leases.database import Database

_QUESTIONS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseTime:
    """The database's epoch seconds = monotonic seconds + `offset`, give or take `error`."""

    offset: float
    error: float

    def at(self, monotonic: float) -> float:
        """The database's epoch seconds at a monotonic time."""
        return monotonic + self.offset


async def database_time(database: Database) -> DatabaseTime:
    """Ask often and believe the quickest answer; half its round trip is the error."""
    answers = []
    for _ in range(_QUESTIONS):
        asked = time.monotonic()
        row = await database.fetchrow("SELECT clock_timestamp() AS now")
        answered = time.monotonic()
        assert row is not None
        answers.append((answered - asked, row["now"].timestamp() - (asked + answered) / 2))
    round_trip, offset = min(answers)
    return DatabaseTime(offset=offset, error=round_trip / 2)
