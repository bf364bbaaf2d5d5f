"""How far apart the alarm's fires are: little where the loop is free, more where it is busy."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import cast

import pytest

from leases.alarm import Alarm
from leases.database_clock import DatabaseClock
from leases.ledger import Ledger
from leases.policy import LeasePolicy
from tests.fakes import FakeClock

FIRES = 100


class LateTimer:
    """Fires when it is told to, as late as the loop is busy."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self._set: tuple[datetime, Callable[[], None]] | None = None

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def set(self, at: datetime, fire: Callable[[], None]) -> None:
        self._set = (at, fire)

    def fire(self, *, late_seconds: float) -> None:
        """Let the time come, and what is late."""
        assert self._set is not None
        (at, fire), self._set = self._set, None
        left = (at - self._clock.now()) / timedelta(seconds=1)
        self._clock.advance(max(0.0, left) + late_seconds)
        fire()


@pytest.mark.parametrize(
    "late_seconds, distance",
    [(0.0, 0.002), (0.003, 0.006), (0.5, 0.02)],
    ids=["free", "between", "busy"],
)
def test_the_busier_the_loop_the_farther_apart(late_seconds: float, distance: float) -> None:
    """A deadline in every millisecond: each fire is for all that came since the one before."""
    clock = FakeClock()
    timer, rung = LateTimer(clock), list[float]()
    alarm = Alarm(
        ledger=cast("Ledger", None),  # Never asked: own deadlines alone.
        policy=LeasePolicy(),
        clock=clock,
        wake=lambda: rung.append(clock.monotonic()),
        database_clock=DatabaseClock(clock),
        timer=timer,
    )
    seconds = FIRES * (late_seconds + distance)
    for number in range(int(seconds * 1000) + 100):
        alarm.arm(clock.now() + timedelta(milliseconds=number))
    for _ in range(FIRES):
        timer.fire(late_seconds=late_seconds)
    assert rung[-1] - rung[-2] == pytest.approx(distance + late_seconds, abs=0.0005)
