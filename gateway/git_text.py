"""Git's bytes as text, and back again.

Git keeps paths, names and messages as bytes; the wire and the database keep text without NUL.
UTF-8 is taken as it is. A byte that is not part of valid UTF-8, and NUL, becomes the private-use
character U+F700 + byte; a text that already holds one of those characters has its bytes written
the same way. So every byte string has exactly one text, different byte strings have different
texts, and `to_bytes(to_text(data)) == data` for all data.
"""

from __future__ import annotations

import re

_BASE = 0xF700
_ESCAPES = re.compile("[\uf700-\uf7ff]")
_ERRORS = re.compile("[\0\udc80-\udcff\uf700-\uf7ff]")


def to_text(data: bytes) -> str:
    """The text that stands for these bytes."""
    text = data.decode("utf-8", "surrogateescape")
    return _ERRORS.sub(_escape, text) if _ERRORS.search(text) else text


def to_bytes(text: str) -> bytes:
    """The bytes a text of `to_text` stands for."""
    plain = _ESCAPES.sub(lambda match: chr(_surrogate(ord(match[0]) - _BASE)), text)
    return plain.encode("utf-8", "surrogateescape")


def _escape(match: re.Match[str]) -> str:
    data = match[0].encode("utf-8", "surrogateescape")
    return "".join(chr(_BASE + byte) for byte in data)


def _surrogate(byte: int) -> int:
    """The code point that surrogateescape writes as this byte; bytes below 128 are themselves."""
    return byte if byte < 0x80 else 0xDC00 + byte
