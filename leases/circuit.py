"""Is the store out? Then nothing is sent to it but probes, until one is answered.

    CLOSED ──the store is out──▶ OPEN ──a good probe──▶ RAMPING ──answers──▶ CLOSED
                                  ▲ │                      │
                    a failed probe└─┘◀──the store is out───┘

Probes come one at a time, after pauses that double up to a bound, so that work resumes within it.
What was held up meanwhile is not let go all at once: a ramping circuit lets a little go ahead, and
doubles that with every round of answers. Arithmetic on a clock it is given; no I/O.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from leases.errors import StoreUnavailable


def is_outage(error: BaseException) -> bool:
    """Whether this failure says that the store is out, rather than something about one blob."""
    return isinstance(error, StoreUnavailable | TimeoutError | ConnectionError)


class CircuitState(StrEnum):
    """What may be sent: everything, nothing but probes, a little and then more."""

    CLOSED = "closed"
    OPEN = "open"
    RAMPING = "ramping"


@dataclass(frozen=True, slots=True)
class Turn:
    """The right to have so many under way; `round` tells apart what began before an outage."""

    count: int
    round: int


class Circuit:
    """How much may be under way now: leases to delete, or requests that need the store.

    Units:  `width_first` and `width_full` count the same as `take` does.
    """

    def __init__(
        self,
        *,
        pause_seconds: float,
        pause_seconds_max: float,
        monotonic: Callable[[], float],
        width_first: int = 1,
        width_full: int = 1,
    ) -> None:
        self._pause_first = pause_seconds
        self._pause_max = pause_seconds_max
        self._pause = pause_seconds
        self._monotonic = monotonic
        self._width_first = width_first
        self._width_full = width_full
        self._width = width_full
        self._under_way = 0
        self._round = 0
        self._probe_at = 0.0
        self._opened_at = 0.0
        self.state = CircuitState.CLOSED

    @property
    def is_open(self) -> bool:
        """Whether nothing but probes may be sent."""
        return self.state is CircuitState.OPEN

    @property
    def is_ramping(self) -> bool:
        """Whether the store is back, and not yet trusted with everything."""
        return self.state is CircuitState.RAMPING

    @property
    def allowed_ratio(self) -> float:
        """How much of what is usual may be under way: 0 while open, 1 while closed."""
        return 0.0 if self.is_open else min(1.0, self._width / self._width_full)

    @property
    def out_seconds(self) -> float:
        """How long ago it opened, if it is not closed."""
        if self.state is CircuitState.CLOSED:
            return 0.0
        return self._monotonic() - self._opened_at

    def wait_seconds(self) -> float:
        """How long until the next probe; 0 when one is due, or none is needed."""
        return max(0.0, self._probe_at - self._monotonic()) if self.is_open else 0.0

    @property
    def has_room(self) -> bool:
        """Whether one more may be under way."""
        if self.is_ramping:
            return self._under_way < self._width
        return not self.is_open

    # What is sent. -------------------------------------------------------------------------------

    def take(self, count: int) -> Turn | None:
        """Have up to so many more under way; None: not even one."""
        if self.is_open:
            return None
        if self.is_ramping:
            count = min(count, self._width - self._under_way)
        if count < 1:
            return None
        self._under_way += count
        return Turn(count, self._round)

    def give_back(self, turn: Turn, *, answered: bool) -> None:
        """They are over; `answered`: the store did answer for some of them."""
        if turn.round != self._round:
            return  # Sent before the outage: their end says nothing about what may be sent now.
        self._under_way -= turn.count
        if answered and self.is_ramping:
            # All that was under way answered once: twice as much.
            self._width += turn.count
            if self._width >= self._width_full:
                self._width = self._width_full
                self.state = CircuitState.CLOSED

    # What the store is like. ---------------------------------------------------------------------

    def opened(self) -> None:
        """The store is out. An outage that is known already is no news."""
        if self.is_open:
            return
        if self.state is CircuitState.CLOSED:
            self._pause = self._pause_first
            self._opened_at = self._monotonic()
        else:
            self._lengthen()
        self._probe_at = self._monotonic() + self._pause
        self.state = CircuitState.OPEN

    def probed(self, *, answered: bool) -> None:
        """A probe is over."""
        assert self.is_open, "only an open circuit is probed"
        if answered:
            self._round += 1
            self._under_way = 0
            self._width = min(self._width_first, self._width_full)
            self.state = CircuitState.RAMPING
        else:
            self._lengthen()
            self._probe_at = self._monotonic() + self._pause

    def _lengthen(self) -> None:
        self._pause = min(2 * self._pause, max(self._pause_first, self._pause_max))
