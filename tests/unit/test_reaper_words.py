"""What the reaper tells of an error is its kind and our own words."""

from __future__ import annotations

import pytest

from leases.errors import StoreUnavailable
from leases.reaper import describe

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
