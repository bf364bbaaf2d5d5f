"""Ids are made here, once, at the edge; the pure core never asks for one.

An mpack_id is a UUID of version 7 (RFC 9562, section 5.7) written as 32 hex digits: 48 bits of
time in milliseconds, then 74 random bits. It is made once and never reused, sorts by time, and a
reconciler can read from it when it was made.
"""

from __future__ import annotations

import os
import re
import secrets
import uuid
from datetime import UTC, datetime

from leases.clock import SystemClock

# Asking the system for random bytes costs as much for one id as for hundreds.
_RANDOM_BYTES_AT_ONCE = 4096
_SHAPE = re.compile(r"[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}\Z")


def new_mpack_id() -> str:
    """A new id, never used before."""
    milliseconds = int(SystemClock().now().timestamp() * 1000) & ((1 << 48) - 1)
    value = milliseconds << 80 | 0x7 << 76 | secrets.randbits(12) << 64
    return f"{value | 0b10 << 62 | secrets.randbits(62):032x}"


def is_mpack_id(text: str) -> bool:
    """Whether this has the shape of an mpack_id."""
    return _SHAPE.match(text) is not None


def mpack_id_time(mpack_id: str) -> datetime:
    """When this id was made, by the clock of the process that made it (a hint, never a proof)."""
    return datetime.fromtimestamp(int(mpack_id[:12], 16) / 1000, UTC)


_random = bytearray()
os.register_at_fork(after_in_child=_random.clear)


def new_event_id() -> uuid.UUID:
    """A random id that makes an append safe to send twice."""
    if not _random:
        _random.extend(os.urandom(_RANDOM_BYTES_AT_ONCE))
    own = bytes(_random[-16:])
    del _random[-16:]
    return uuid.UUID(bytes=own, version=4)


def new_token(bytes_count: int = 24) -> str:
    """Random text for a claim, an instance or a secret, two hex digits a byte."""
    return secrets.token_hex(bytes_count)
