"""What the fuzzer makes of a seed and a number."""

from __future__ import annotations

import random

import pytest

from tests.fuzz import Fuzzer, fuzzed_history

BODY_BYTES_MAX = 32 << 20


@pytest.mark.parametrize("number", ["29/416055", "29/290380", "29/420348"])
def test_no_body_is_large_by_chance(number: str) -> None:
    """The first was 983 MiB: fifty times an object that was there fifty times already. The fuzzer
    holds its bodies where it measures the gateway's memory.
    """
    fuzzer = Fuzzer(fuzzed_history(), repo_id="0" * 32, push="mpk_x", admin="mpk_y")
    request = fuzzer.request(random.Random(number))
    assert 0 < len(request.body) <= BODY_BYTES_MAX
