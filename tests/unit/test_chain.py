"""The hash chain against a vector put together by hand, byte by byte."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any
from uuid import UUID

import pytest

from leases.chain import StoredEvent, event_hash, genesis

LOG_ID = UUID("00112233-4455-6677-8899-aabbccddeeff")
EVENT = StoredEvent(
    position=12,
    event_id=UUID("0123456789abcdef0123456789abcdef"),
    stream="lease/ü",
    version=3,
    type="lease.stuck",
    schema_version=1,
    data='{"a":1}',
    data_sha=sha256(b'{"a":1}').digest(),
    actor="reaper",
    request_id=None,
    recorded_at=datetime(1970, 1, 1, 0, 0, 1, 5, tzinfo=UTC),
    hash=b"",
)
PREVIOUS = bytes(32)


def test_genesis_is_the_hash_of_the_log_id() -> None:
    assert genesis(LOG_ID) == sha256(bytes.fromhex("00112233445566778899aabbccddeeff")).digest()


def test_the_vector() -> None:
    by_hand = (
        PREVIOUS
        + b"\0\0\0\x0212"
        + b"\0\0\0\x10"
        + bytes.fromhex("0123456789abcdef0123456789abcdef")
        + b"\0\0\0\x08lease/\xc3\xbc"
        + b"\0\0\0\x013"
        + b"\0\0\0\x0blease.stuck"
        + b"\0\0\0\x011"
        + b"\0\0\0\x20"
        + sha256(b'{"a":1}').digest()
        + b"\0\0\0\x06reaper"
        + b"\xff\xff\xff\xff"
        + b"\0\0\0\x071000005"
    )
    assert event_hash(PREVIOUS, EVENT) == sha256(by_hand).digest()


@pytest.mark.parametrize(
    "change",
    [
        {"position": 13},
        {"event_id": UUID(int=1)},
        {"stream": "lease/u"},
        {"version": 4},
        {"type": "lease.other"},
        {"schema_version": 2},
        {"data": '{"a":2}'},
        {"actor": ""},
        {"request_id": ""},
        {"recorded_at": datetime(1970, 1, 1, 0, 0, 1, 6, tzinfo=UTC)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_field_counts(change: dict[str, Any]) -> None:
    assert event_hash(PREVIOUS, replace(EVENT, **change)) != event_hash(PREVIOUS, EVENT)


def test_fields_cannot_run_into_each_other() -> None:
    one = replace(EVENT, stream="ab", type="c")
    other = replace(EVENT, stream="a", type="bc")
    assert event_hash(PREVIOUS, one) != event_hash(PREVIOUS, other)


def test_the_event_in_front_counts() -> None:
    assert event_hash(b"\1" * 32, EVENT) != event_hash(PREVIOUS, EVENT)
