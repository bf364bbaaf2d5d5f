"""What a blob's key may look like: the same rule for every adapter.

A key is a relative path of plain segments. Segments never begin with a dot, so `..` cannot leave
the store and an adapter may keep files of its own under dotted names; the owner marker is the one
exception, by its whole name.
"""

from __future__ import annotations

import re

from leases.errors import InvalidRequest

OWNER_KEY = "transient/.owner"
KEY_LENGTH_MAX = 512  # Chosen by us: half of S3's 1,024 bytes, our longest key has about 80.

# A segment has 255 characters at most: NAME_MAX of the file systems in use.
_SEGMENT = r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,254}"
_KEY = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*")
_PREFIX = re.compile(rf"(?:{_SEGMENT}/)*[A-Za-z0-9._-]{{0,255}}")


class InvalidKey(InvalidRequest):
    """A key is a relative path of letters, digits, dots, dashes and underscores."""

    code = "invalid_key"


def is_key(text: str) -> bool:
    """Whether a blob may be stored under this key."""
    if len(text) > KEY_LENGTH_MAX:
        return False
    return text == OWNER_KEY or _KEY.fullmatch(text) is not None


def check_key(text: str) -> str:
    """The key itself, or InvalidKey."""
    if not is_key(text):
        raise InvalidKey
    return text


def check_prefix(text: str) -> str:
    """The prefix of a listing itself (its last segment may be cut anywhere), or InvalidKey."""
    if len(text) > KEY_LENGTH_MAX or _PREFIX.fullmatch(text) is None:
        raise InvalidKey
    return text
