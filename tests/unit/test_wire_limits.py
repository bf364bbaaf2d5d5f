import pytest

from gateway.wire.limits import WireLimits


def test_the_defaults_fit_together() -> None:
    assert WireLimits().problems() == []


@pytest.mark.parametrize(
    "limits, problem",
    [
        (WireLimits(want_max=0), "want_max must be above zero"),
        (WireLimits(have_max=3_000_000), "have_max must not exceed 2,000,000"),
        (WireLimits(record_depth_max=1000), "record_depth_max must not exceed 200"),
        (WireLimits(body_bytes_max=10, message_bytes_max=5), "record_bytes_max must not exceed"),
        (WireLimits(message_bytes_max=2**21), "message_bytes_max must not exceed"),
    ],
)
def test_what_cannot_work_is_named(limits: WireLimits, problem: str) -> None:
    assert any(sentence.startswith(problem) for sentence in limits.problems())
