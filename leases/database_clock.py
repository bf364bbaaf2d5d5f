"""What the database's clock says now, as far as this process can tell without asking.

Used to decide when to look again, to date a URL, and to check a URL of our own. Never to decide
that a lease is due: the database does that itself.
"""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime, timedelta

from leases.ports import Clock

# Of so many answers the quickest is believed: its time is known most exactly.
_SAMPLES = 16
# A busy second's slow answers shall not crowd out the quick ones of calmer ones.
_SAMPLES_APART_SECONDS = 0.25
# What two machines' clocks drift apart while so many answers come in is far less.
_DRIFT_SECONDS = 0.01


class DatabaseClock:
    """The database's time by this process's monotonic clock; a wall clock that jumps changes
    nothing.

    An answer's time is taken as of its arrival, so that this clock runs late by up to a round
    trip, and never early. A database whose clock was set is believed at once.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._samples: deque[tuple[float, float]] = deque(maxlen=_SAMPLES)
        self._offset: float | None = None
        self._sampled_at = 0.0
        self.skew_seconds = 0.0

    def observe(self, now: datetime, *, asked_at: float) -> None:
        """The database said `now` in an answer to what was asked at this monotonic time."""
        answered_at = self._clock.monotonic()
        took, offset = answered_at - asked_at, now.timestamp() - answered_at
        if self._samples and not self._agrees(took, offset):
            self._samples.clear()
        soon = answered_at - self._sampled_at < _SAMPLES_APART_SECONDS
        if not self._samples or not soon or took < min(self._samples)[0]:
            self._samples.append((took, offset))
            self._sampled_at = answered_at
        self._offset = min(self._samples)[1]
        self.skew_seconds = (self._clock.now() - self.now()).total_seconds()

    def _agrees(self, took: float, offset: float) -> bool:
        """Whether both can be one clock's: an answer was read somewhere on its way."""
        quickest, believed = min(self._samples)
        return (
            believed - took <= offset + _DRIFT_SECONDS
            and offset - quickest <= believed + _DRIFT_SECONDS
        )

    def now(self) -> datetime:
        """The database's time, or the process's before the first answer."""
        if self._offset is None:
            return self._clock.now()
        return datetime.fromtimestamp(self._clock.monotonic() + self._offset, UTC)

    def monotonic_at(self, moment: datetime) -> float:
        """This process's monotonic time at which the database's clock will show `moment`."""
        return self._clock.monotonic() + (moment - self.now()) / timedelta(seconds=1)
