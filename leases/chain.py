"""The hash chain of the log, as the append function in the database computes it.

    hash = sha256(previous hash || position || event_id || stream || version || type
                  || schema_version || sha256(data) || actor || request_id || recorded_at)

Each field is its length as four big-endian bytes and then its bytes: numbers in decimal text,
texts in UTF-8, the id as 16 bytes, the time as epoch microseconds; NULL is the length -1. The
first event's previous hash is sha256 of the log id's 16 bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from uuid import UUID

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent:
    """A row of `events`."""

    position: int
    event_id: UUID
    stream: str
    version: int
    type: str
    schema_version: int
    data: str
    data_sha: bytes
    actor: str
    request_id: str | None
    recorded_at: datetime
    hash: bytes


def genesis(log_id: UUID) -> bytes:
    """What stands in for the hash before the first event."""
    return sha256(log_id.bytes).digest()


def _field(value: bytes | str | int | None) -> bytes:
    if value is None:
        return struct.pack(">i", -1)
    raw = value if isinstance(value, bytes) else str(value).encode()
    return struct.pack(">i", len(raw)) + raw


def event_hash(previous: bytes, event: StoredEvent) -> bytes:
    """The hash that `event` must carry when it follows `previous`."""
    microseconds = (event.recorded_at - _EPOCH) // timedelta(microseconds=1)
    return sha256(
        previous
        + _field(event.position)
        + _field(event.event_id.bytes)
        + _field(event.stream)
        + _field(event.version)
        + _field(event.type)
        + _field(event.schema_version)
        + _field(sha256(event.data.encode()).digest())
        + _field(event.actor)
        + _field(event.request_id)
        + _field(microseconds)
    ).digest()
