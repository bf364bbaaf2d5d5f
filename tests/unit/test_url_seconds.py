"""How long a URL lives, and how long it is said to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from gateway.packs.url_life import seconds_left, url_seconds

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "ends_in, told",
    [(10.0, 10.0), (10.003, 10.0), (9.5, 9.5), (-0.5, 0.0)],
    ids=["whole", "a clock behind", "shared", "over"],
)
def test_no_more_life_is_promised_than_was_asked_for(ends_in: float, told: float) -> None:
    ends_at = NOW + timedelta(seconds=ends_in)
    assert seconds_left(ends_at, NOW, ttl_seconds=10) == told


@pytest.mark.parametrize("now_ms", [0, 1, 999], ids=["whole", "just after", "just before"])
@pytest.mark.parametrize("left_ms", [1, 50, 999, 1000, 1001, 300_000, 299_999])
def test_a_url_dies_within_the_second_after_the_promise(now_ms: int, left_ms: int) -> None:
    """It is dated by the whole second, so what it is signed for is counted from there."""
    now = NOW + timedelta(milliseconds=now_ms)
    expires_at = now + timedelta(milliseconds=left_ms)
    dies_at = NOW + timedelta(seconds=url_seconds(expires_at, now))
    assert expires_at <= dies_at < expires_at + timedelta(seconds=1)
