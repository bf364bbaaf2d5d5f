"""The hash chain of the log, as the append function in the database computes it.

    hash = sha256(previous hash || position || event_id || stream || version || type
                  || schema_version || sha256(data) || actor || request_id || recorded_at)

Each field is its length as four big-endian bytes and then its bytes: numbers in decimal text,
texts in UTF-8, the id as 16 bytes, the time as epoch microseconds; NULL is the length -1. The
first event's previous hash is sha256 of the log id's 16 bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from uuid import UUID

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LENGTH = struct.Struct(">i").pack
_NOTHING = _LENGTH(-1)


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
        return _NOTHING
    raw = value if isinstance(value, bytes) else str(value).encode()
    return _LENGTH(len(raw)) + raw


def link_hash(previous: bytes, fields: Iterable[bytes | str | int | None]) -> bytes:
    """The hash of one link, from its fields in the chain's order, the data as its digest."""
    return sha256(b"".join((previous, *map(_field, fields)))).digest()


def microseconds(moment: datetime) -> int:
    """A time as it is hashed."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def event_hash(previous: bytes, event: StoredEvent) -> bytes:
    """The hash that `event` must carry when it follows `previous`."""
    fields = (
        event.position,
        event.event_id.bytes,
        event.stream,
        event.version,
        event.type,
        event.schema_version,
        sha256(event.data.encode()).digest(),
        event.actor,
        event.request_id,
        microseconds(event.recorded_at),
    )
    return link_hash(previous, fields)
