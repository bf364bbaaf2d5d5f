"""How far several replicas may pass a quota together: two grants for each further one, no more."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from leases.room import Verdict, judge

_PERIOD_TICKS = 4  # A count is good for so long.


@dataclass(slots=True)
class _Replica:
    """What one replica knows: a count that is up to a period old, and what it took itself."""

    counted_at: int = -_PERIOD_TICKS
    counted: int = 0
    granted: int = 0

    def ask(self, now: int, asked: int, *, limit: int, used: int, replicas: int) -> bool:
        """Whether it grants this much, when so much is used in truth."""
        if now - self.counted_at >= _PERIOD_TICKS:
            self.counted_at, self.counted, self.granted = now, used, 0
        verdict = judge(
            limit,
            used=self.counted + self.granted,
            granted=self.granted,
            asked=asked,
            replicas=replicas,
        )
        if verdict is Verdict.FITS:
            self.granted += asked
        return verdict is Verdict.FITS


_asks = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 12), st.integers(1, 40)),
    max_size=80,
)


@given(
    limit=st.integers(1, 400), replicas=st.integers(1, 4), largest=st.integers(1, 12), asks=_asks
)
def test_replicas_that_count_apart_pass_a_limit_by_little(
    limit: int, replicas: int, largest: int, asks: list[tuple[int, int, int, int]]
) -> None:
    """Whoever asks, whenever, however often; one replica alone never passes it."""
    now, used = 0, 0
    known = [_Replica() for _ in range(replicas)]
    for number, pause, size, times in asks:
        now += pause
        asked = min(size, largest)
        for _ in range(times):
            if known[number % replicas].ask(now, asked, limit=limit, used=used, replicas=replicas):
                used += asked
    assert used <= limit + 2 * (replicas - 1) * largest


@given(
    limit=st.integers(1, 100),
    used=st.integers(0, 100),
    asked=st.integers(1, 50),
    replicas=st.integers(1, 9),
)
def test_room_that_was_just_counted_is_given(
    limit: int, used: int, asked: int, replicas: int
) -> None:
    """Nobody waits for ever: the first who asks behind a count gets what is there."""
    verdict = judge(limit, used=used, granted=0, asked=asked, replicas=replicas)
    assert verdict is (Verdict.FITS if used + asked <= limit else Verdict.FULL)
