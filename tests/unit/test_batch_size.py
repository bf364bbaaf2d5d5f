"""How many blobs are deleted at once."""

from __future__ import annotations

import pytest

from leases.deletions import BatchSize

SECONDS = 2.5


def after(*batches: tuple[int, float], most: int = 1000) -> int:
    size = BatchSize(most, seconds_max=SECONDS)
    for count, seconds in batches:
        size.learn(count, seconds)
    return size.value


@pytest.mark.parametrize(
    "batches, value",
    [
        ([], 250),
        ([(250, 0.1)], 500),
        ([(250, 0.1), (500, 0.1), (1000, 0.1)], 1000),
        ([(20, 0.1)], 250),
        ([(250, SECONDS)], 500),
        ([(250, 2 * SECONDS)], 125),
        ([(250, 4 * SECONDS)], 62),
        ([(1, 10.0)], 16),
        ([(20, 10.0)] * 20, 16),
        ([(250, 10.0), (62, 0.2), (124, 0.4)], 248),
    ],
    ids=["unknown", "fast", "most", "few", "just", "slow", "out", "one", "least", "again"],
)
def test_the_next_batch_is_as_many_as_end_in_good_time(
    batches: list[tuple[int, float]], value: int
) -> None:
    assert after(*batches) == value


def test_it_is_never_more_than_the_policy_says() -> None:
    assert after((10, 0.1), most=10) == 10
    assert after((10, 30.0), most=10) <= 10
