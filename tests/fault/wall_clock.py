"""A wall clock that is wrong, in this process or in one of its own.

    python -m tests.fault.wall_clock 900 serve        our command, by a clock 15 minutes fast

What reads it is misled: `SystemClock` (ruff sees that nothing else of ours does) and APScheduler;
in a process of its own the dates of requests to S3, too. The monotonic clock is right.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

import pytest

from gateway.cli import main
from leases.clock import SystemClock


class WallClock:
    """The machine's wall clock, wrong by `shift`."""

    def __init__(self, shift: timedelta = timedelta()) -> None:
        self.shift = shift
        self._right = SystemClock.now

    def now(self, zone: tzinfo | None = None) -> datetime:
        return (self._right(SystemClock()) + self.shift).astimezone(zone)

    def mislead(self, patch: pytest.MonkeyPatch) -> None:
        """Let our own code and APScheduler read this one."""
        clock = self

        class Datetime(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> Any:
                return clock.now(tz)

        patch.setattr(SystemClock, "now", lambda _self: self.now(UTC))
        patch.setattr("apscheduler.schedulers.base.datetime", Datetime)

    def mislead_signing(self, patch: pytest.MonkeyPatch) -> None:
        """Let requests to S3 be dated by this one."""
        patch.setattr(
            "botocore.auth.get_current_datetime", lambda: self.now(UTC).replace(tzinfo=None)
        )


if __name__ == "__main__":
    wrong = WallClock(timedelta(seconds=float(sys.argv.pop(1))))
    wrong.mislead(pytest.MonkeyPatch())
    wrong.mislead_signing(pytest.MonkeyPatch())
    main()
