"""What a Content-Length says, whatever stands there."""

from __future__ import annotations

import pytest

from gateway.middleware import declared_bytes


@pytest.mark.parametrize("text", ["", "-1", "1e9", "x", "\xb2", "+5", " 5"])
def test_what_is_no_length_says_nothing(text: str) -> None:
    assert declared_bytes({"content-length": text}) == 0


def test_a_length_is_read() -> None:
    assert declared_bytes({}) == 0
    assert declared_bytes({"content-length": "12345"}) == 12_345


@pytest.mark.parametrize("digits", [19, 4301, 100_000])
def test_a_length_beyond_reading_is_too_large(digits: int) -> None:
    """The fuzzer found that Python refuses to read more than 4,300 digits: a 500."""
    assert declared_bytes({"content-length": "9" * digits}) >= 2**63
