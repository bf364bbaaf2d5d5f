"""How long a URL lives, and how long it is said to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from gateway.packs.url_life import seconds_left

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "ends_in, told",
    [(10.0, 10.0), (10.003, 10.0), (9.5, 9.5), (-0.5, 0.0)],
    ids=["whole", "a clock behind", "shared", "over"],
)
def test_no_more_life_is_promised_than_was_asked_for(ends_in: float, told: float) -> None:
    ends_at = NOW + timedelta(seconds=ends_in)
    assert seconds_left(ends_at, NOW, ttl_seconds=10) == told
