"""What is told of a failed deletion is its kind and our own words, and when it is tried again."""

from __future__ import annotations

import pytest

from leases.errors import StoreUnavailable
from leases.policy import LeasePolicy
from leases.settlement import describe, retry_seconds

SECRET = "https://blobs.example/key?X-Amz-Signature=5ec4e7"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(SECRET),
        OSError(5, SECRET),
        StoreUnavailable(cause=SECRET),
        ExceptionGroup(SECRET, [ValueError(SECRET)]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_stores_words_are_never_repeated(error: Exception) -> None:
    """A store's message may hold a signed URL."""
    assert "5ec4e7" not in describe(error)
    assert describe(error).startswith(type(error).__name__)


def test_our_own_words_are() -> None:
    assert describe(StoreUnavailable()) == (
        "StoreUnavailable: The object store does not answer; try again shortly."
    )


def test_it_is_short() -> None:
    assert len(describe(StoreUnavailable("x" * 1000))) == 200


def test_waits_grow_and_stay_between_a_second_and_an_hour() -> None:
    delays = [
        [retry_seconds(LeasePolicy(), attempts) for _ in range(200)] for attempts in range(1, 99)
    ]
    assert min(map(min, delays)) >= 1
    assert max(map(max, delays)) <= 3600
    assert min(delays[5]) > max(delays[3])
