"""Ids are made here, once, at the edge; the pure core never asks for one.

An mpack_id is a UUID of version 7 (RFC 9562, section 5.7) written as 32 hex digits: 48 bits of
time in milliseconds, then 74 random bits. It is made once and never reused, sorts by time, and a
reconciler can read from it when it was made.
"""

from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime

from leases.chance import chance
from leases.clock import SystemClock

_SHAPE = re.compile(r"[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}\Z")


def new_mpack_id(now: datetime | None = None) -> str:
    """A new id, never used before; `now` by the clock of whoever has one of its own."""
    moment = now or SystemClock().now()
    milliseconds = int(moment.timestamp() * 1000) & ((1 << 48) - 1)
    random = int.from_bytes(chance().randbytes(10))
    value = milliseconds << 80 | 0x7 << 76 | (random >> 62 & 0xFFF) << 64
    return f"{value | 0b10 << 62 | random & ((1 << 62) - 1):032x}"


def is_mpack_id(text: str) -> bool:
    """Whether this has the shape of an mpack_id."""
    return _SHAPE.match(text) is not None


def mpack_id_time(mpack_id: str) -> datetime:
    """When this id was made, by the clock of the process that made it (a hint, never a proof)."""
    return datetime.fromtimestamp(int(mpack_id[:12], 16) / 1000, UTC)


def new_event_id() -> uuid.UUID:
    """A random id that makes an append safe to send twice."""
    return uuid.UUID(bytes=chance().randbytes(16), version=4)


def new_token(bytes_count: int = 24) -> str:
    """Random text for a claim, an instance or a secret, two hex digits a byte."""
    return chance().randbytes(bytes_count).hex()
