"""The database's time by this process's monotonic clock: late by a round trip, never early."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from leases.database_clock import DatabaseClock
from tests.fakes import FakeClock

DATABASE_NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)


def asked(clock: FakeClock, own: DatabaseClock, said: datetime, *, took: float) -> None:
    asked_at = clock.monotonic()
    clock.advance(took)
    own.observe(said, asked_at=asked_at)


def test_before_the_first_answer_it_is_the_process_clock() -> None:
    clock = FakeClock()
    assert DatabaseClock(clock).now() == clock.now()


def test_it_moves_on_with_the_monotonic_clock() -> None:
    clock = FakeClock()
    own = DatabaseClock(clock)
    asked(clock, own, DATABASE_NOW, took=0.01)
    clock.advance(5)
    assert own.now() == DATABASE_NOW + timedelta(seconds=5)


def test_a_wall_clock_that_jumps_changes_nothing_but_the_skew() -> None:
    clock = FakeClock()
    own = DatabaseClock(clock)
    asked(clock, own, DATABASE_NOW, took=0.01)
    clock.shift(3600)
    assert own.now() == DATABASE_NOW
    asked(clock, own, DATABASE_NOW, took=0)
    assert own.skew_seconds == pytest.approx((clock.now() - own.now()).total_seconds())


def test_the_quickest_answer_is_believed() -> None:
    """A slow answer's time is old by an unknown part of its way."""
    clock = FakeClock()
    own = DatabaseClock(clock)
    asked(clock, own, DATABASE_NOW, took=0.001)
    asked(clock, own, DATABASE_NOW, took=2)
    assert own.now() == DATABASE_NOW + timedelta(seconds=2)


@pytest.mark.parametrize(
    "step", [timedelta(seconds=13), timedelta(seconds=-13), timedelta(hours=1)]
)
def test_a_clock_that_was_set_is_believed_at_once(step: timedelta) -> None:
    """Or what falls due by the new time is looked for by the old one for sixteen answers more."""
    clock = FakeClock()
    own = DatabaseClock(clock)
    asked(clock, own, DATABASE_NOW, took=0.001)
    asked(clock, own, DATABASE_NOW + step, took=0.2)
    assert own.now() == DATABASE_NOW + step


def test_old_answers_are_forgotten() -> None:
    """Clocks drift: of two days, the quickest answer is not the truest."""
    clock = FakeClock()
    own = DatabaseClock(clock)
    asked(clock, own, DATABASE_NOW, took=0)
    for number in range(1, 17):
        clock.advance(0.499)
        drifted = timedelta(seconds=number / 2, milliseconds=5)
        asked(clock, own, DATABASE_NOW + drifted, took=0.001)
    assert own.now() >= DATABASE_NOW + timedelta(seconds=8, milliseconds=4)


def test_many_slow_answers_do_not_crowd_out_a_quick_one() -> None:
    """As of a second full of claims."""
    clock = FakeClock()
    own = DatabaseClock(clock)
    asked(clock, own, DATABASE_NOW, took=0.001)
    for number in range(1, 50):
        asked(clock, own, DATABASE_NOW + timedelta(seconds=0.02 * (number - 1)), took=0.02)
    assert own.now() >= DATABASE_NOW + timedelta(seconds=0.979)


def test_a_deadline_in_monotonic_time() -> None:
    clock = FakeClock()
    own = DatabaseClock(clock)
    asked(clock, own, DATABASE_NOW, took=0)
    due = own.monotonic_at(DATABASE_NOW + timedelta(seconds=7))
    assert due == pytest.approx(clock.monotonic() + 7, abs=1e-5)
