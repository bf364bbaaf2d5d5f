"""The Range header for one range (RFC 9110, section 14), and the headers around it: pure."""

from __future__ import annotations

import re
from typing import ClassVar, NamedTuple

from leases.errors import InvalidRequest

# More digits than any size has: such a header is ignored, as the RFC allows.
_ONE_RANGE = re.compile(r"bytes=[ \t,]*([0-9]{0,18})-([0-9]{0,18})[ \t,]*", re.IGNORECASE)


class RangeUnsatisfiable(InvalidRequest):
    """The range asked for lies outside the blob."""

    code = "range_unsatisfiable"
    status: ClassVar[int] = 416


class ByteRange(NamedTuple):
    """The bytes of `[start, stop)`."""

    start: int
    stop: int


def parse_range(header: str | None, size_bytes: int) -> ByteRange | None:
    """The one range that is asked for, None where the whole blob is the answer.

    Several ranges, other units and malformed headers count as no header at all, as the RFC allows
    and wants.
    Errors:  RangeUnsatisfiable, with `size_bytes` for the Content-Range of the 416.
    """
    match = _ONE_RANGE.fullmatch(header) if header is not None else None
    if match is None:
        return None
    first, last = match.groups()
    if first:
        return _from_first(int(first), int(last) if last else None, size_bytes)
    return _suffix(int(last), size_bytes) if last else None


def matches_any(header: str | None, etag: str) -> bool:
    """Whether If-None-Match names this ETag, compared weakly as the RFC says."""
    if header is None:
        return False
    named = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return "*" in named or etag in named


def range_still_valid(if_range: str | None, etag: str) -> bool:
    """Whether If-Range lets the range stand: compared strongly; dates never match, we send none."""
    return if_range is None or if_range.strip() == etag


def _from_first(first: int, last: int | None, size_bytes: int) -> ByteRange | None:
    if last is not None and last < first:
        return None
    if first >= size_bytes:
        raise RangeUnsatisfiable(size_bytes=size_bytes)
    return ByteRange(first, size_bytes if last is None else min(last + 1, size_bytes))


def _suffix(length: int, size_bytes: int) -> ByteRange | None:
    if length == 0:
        raise RangeUnsatisfiable(size_bytes=size_bytes)
    if size_bytes == 0:
        return None  # Satisfiable by the RFC, but no Content-Range can express it.
    return ByteRange(max(0, size_bytes - length), size_bytes)
