"""Ids are unique, sort by time and tell when they were made."""

from __future__ import annotations

import os
from datetime import timedelta
from uuid import UUID

import pytest

from leases.clock import SystemClock
from leases.ids import is_mpack_id, mpack_id_time, new_event_id, new_mpack_id, new_token


def test_an_mpack_id_is_a_uuid_of_version_7() -> None:
    value = UUID(hex=new_mpack_id())
    assert (value.version, value.variant) == (7, "specified in RFC 4122")


def test_an_mpack_id_tells_when_it_was_made() -> None:
    before = SystemClock().now() - timedelta(milliseconds=1)
    assert before <= mpack_id_time(new_mpack_id()) <= SystemClock().now()


def test_ids_do_not_repeat() -> None:
    assert len({new_mpack_id() for _ in range(10_000)}) == 10_000
    assert len({new_event_id() for _ in range(1_000)}) == 1_000
    assert len({new_token() for _ in range(1_000)}) == 1_000


def test_a_forked_process_makes_ids_of_its_own() -> None:
    """Random bytes are kept for later ids, and a fork copies memory."""
    new_event_id()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, new_event_id().bytes)
        os._exit(0)
    os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as pipe:
        os.close(writing)
        theirs = pipe.read()
    assert len(theirs) == 16
    assert theirs != new_event_id().bytes


@pytest.mark.parametrize(
    "text, expected",
    [
        ("0196f0c0a1b27abc8abcdef012345678", True),
        ("0196F0C0A1B27ABC8ABCDEF012345678", False),
        ("0196f0c0a1b24abc8abcdef012345678", False),
        ("0196f0c0a1b27abccabcdef012345678", False),
        ("0196f0c0a1b27abc8abcdef01234567", False),
        ("0196f0c0a1b27abc8abcdef0123456789", False),
        ("0196f0c0a1b27abc8abcdef012345678\n", False),
        ("", False),
    ],
    ids=[
        "good",
        "upper case",
        "version 4",
        "variant",
        "short",
        "long",
        "line end",
        "empty",
    ],
)
def test_the_shape(text: str, expected: bool) -> None:
    assert is_mpack_id(text) is expected


def test_a_token_has_two_digits_a_byte() -> None:
    assert len(new_token(4)) == 8
