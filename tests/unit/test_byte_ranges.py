from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.routes.byte_ranges import (
    RangeUnsatisfiable,
    matches_any,
    parse_range,
    range_still_valid,
)


@pytest.mark.parametrize(
    "header, expected",
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=2-4", (2, 5)),
        ("bytes=2-", (2, 10)),
        ("bytes=2-99", (2, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-99", (0, 10)),
        ("BYTES= 2-4 ", (2, 5)),
        ("bytes=2-4,", (2, 5)),
    ],
)
def test_one_range(header: str, expected: tuple[int, int]) -> None:
    assert parse_range(header, 10) == expected


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=4-2",
        "bytes=a-b",
        "bytes=1-2,4-5",
        "bytes=-1-2",
        "bytes=+1-2",
        "bytes=٣-٤",
        "items=0-1",
        "bytes=0-" + "9" * 5000,
    ],
)
def test_what_is_no_single_range_gets_the_whole_blob(header: str | None) -> None:
    """The RFC lets a server ignore what it does not serve; a 400 would break such clients."""
    assert parse_range(header, 10) is None


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-12", "bytes=-0"])
def test_a_range_outside_the_blob_is_told(header: str) -> None:
    with pytest.raises(RangeUnsatisfiable) as caught:
        parse_range(header, 10)
    assert caught.value.fields == {"size_bytes": 10}


def test_an_empty_blob_has_no_last_bytes() -> None:
    assert parse_range("bytes=-5", 0) is None


@given(first=st.integers(0, 50), last=st.integers(0, 50), size=st.integers(0, 40))
@example(first=0, last=0, size=0)
def test_a_range_is_the_slice_it_says(first: int, last: int, size: int) -> None:
    content = bytes(range(size))
    try:
        part = parse_range(f"bytes={first}-{last}", size)
    except RangeUnsatisfiable:
        assert content[first : last + 1] == b""
    else:
        if part is None:
            assert last < first
        else:
            assert content[part.start : part.stop] == content[first : last + 1] != b""


@given(header=st.text(max_size=30).map(lambda text: f"bytes={text}"), size=st.integers(0, 100))
def test_no_header_leads_outside_the_blob(header: str, size: int) -> None:
    try:
        part = parse_range(header, size)
    except RangeUnsatisfiable:
        return
    assert part is None or 0 <= part.start < part.stop <= size


@pytest.mark.parametrize(
    "header, expected",
    [
        (None, False),
        ('"a"', True),
        ('W/"a"', True),
        ("*", True),
        ('"b", "a"', True),
        ('"b"', False),
        ("a", False),
    ],
)
def test_if_none_match_compares_weakly(header: str | None, expected: bool) -> None:
    assert matches_any(header, '"a"') is expected


@pytest.mark.parametrize(
    "header, expected",
    [(None, True), ('"a"', True), ('W/"a"', False), ("Mon, 01 Jan 2024 00:00:00 GMT", False)],
)
def test_if_range_compares_strongly(header: str | None, expected: bool) -> None:
    assert range_still_valid(header, '"a"') is expected
