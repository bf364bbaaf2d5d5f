import pytest

from gateway.errors import Incomplete
from gateway.wire.times import instant_of


@pytest.mark.parametrize(
    "text, expected",
    [
        ("2026-01-31T12:00:00+00:00", "2026-01-31T12:00:00+00:00"),
        ("2026-01-31T12:00:00Z", "2026-01-31T12:00:00+00:00"),
        ("2026-01-31T12:00:00", "2026-01-31T12:00:00+00:00"),
        ("2026-01-31 12:00:00.5 +0200", "2026-01-31T10:00:00.500000+00:00"),
        ("2026-01-31T12:00:00.123456789-03:30", "2026-01-31T15:30:00.123456+00:00"),
        ("2026-01-31T12:00+05", "2026-01-31T07:00:00+00:00"),
        ("2026-01-31", "2026-01-31T00:00:00+00:00"),
        ("2016-12-31T23:59:60Z", "2016-12-31T23:59:59+00:00"),
    ],
)
def test_any_offset_and_precision_is_read(text: str, expected: str) -> None:
    assert instant_of(text, what="It").isoformat() == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "yesterday", "1767225600", "2026-02-30", "2026-13-01", "2026-01-01T25:00:00"),
        *("2026-01-01T00:00:00+99:00", "0001-01-01T00:00:00+14:00", "٢٠٢٦-01-01"),
    ],
)
def test_what_is_no_time_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(Incomplete, match="committed_at is not a time"):
        instant_of(text, what="committed_at")
