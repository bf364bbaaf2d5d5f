"""Bytes of Git as text: reversible, without collisions, fit for msgpack and PostgreSQL."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from gateway.git_text import to_bytes, to_text

ESCAPED_LOOKALIKE = "\uf7ff".encode()


@given(st.binary())
@example(b"caf\xe9")
@example(b"a\x00b")
@example(b"\xed\xa0\x80")
@example(ESCAPED_LOOKALIKE)
def test_every_byte_string_comes_back(data: bytes) -> None:
    text = to_text(data)
    assert to_bytes(text) == data
    assert "\0" not in text
    text.encode()  # No surrogate is left: msgpack and PostgreSQL take it.


@given(st.text(st.characters(exclude_categories=["Cs", "Co"], exclude_characters="\0")))
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert to_text(text.encode()) == text


def test_a_text_that_looks_escaped_stays_apart_from_the_byte_it_looks_like() -> None:
    assert to_text(ESCAPED_LOOKALIKE) != to_text(b"\xff")
