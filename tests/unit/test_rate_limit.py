"""Buckets: what passes, when the next may come, and how many are kept."""

from __future__ import annotations

import pytest

from gateway.rate_limit import Buckets, address_of


def test_a_burst_passes_and_then_the_rate_holds() -> None:
    buckets = Buckets(per_second=2, burst_seconds=2)
    assert [buckets.take("a", 0) for _ in range(4)] == [0] * 4
    assert buckets.take("a", 0) == pytest.approx(0.5)
    assert buckets.take("a", 0.5) == 0
    assert buckets.take("a", 0.5) == pytest.approx(0.5)
    assert buckets.take("b", 0.5) == 0


def test_a_refused_request_costs_nothing() -> None:
    buckets = Buckets(per_second=1, burst_seconds=1)
    assert buckets.take("a", 0) == 0
    assert [buckets.take("a", 0.5) for _ in range(10)] == [pytest.approx(0.5)] * 10
    assert buckets.take("a", 1.0) == 0


def test_a_clock_that_stands_gives_nothing_away() -> None:
    buckets = Buckets(per_second=1, burst_seconds=1)
    assert buckets.take("a", 10) == 0
    assert buckets.take("a", 5) > 0
    assert buckets.take("a", 6) == 0


def test_a_rate_of_zero_is_no_limit() -> None:
    buckets = Buckets(per_second=0, burst_seconds=1)
    assert {buckets.take("a", 0) for _ in range(100)} == {0}


def test_the_longest_silent_are_forgotten() -> None:
    buckets = Buckets(per_second=1, burst_seconds=1, buckets_max=2)
    for key in ("a", "b", "a", "c"):
        buckets.take(key, 0)
    assert len(buckets) == 2
    assert "a" in buckets
    assert "b" not in buckets


@pytest.mark.parametrize(
    "client, same_as",
    [
        (("2001:db8::1", 1), ("2001:db8::ffff", 2)),
        (("10.0.0.1", 1), ("10.0.0.1", 2)),
        (None, None),
    ],
)
def test_whose_address_it_is(client: object, same_as: object) -> None:
    assert address_of({"client": client}) == address_of({"client": same_as})
    assert address_of({"client": client}) != address_of({"client": ("10.0.0.9", 1)})
