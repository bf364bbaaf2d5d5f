"""Answers are read as if they came from anybody."""

from __future__ import annotations

import pytest

from gateway.client.exchange import Answer, pause_seconds


def answered(body: bytes, **headers: str) -> Answer:
    answer = Answer()
    answer.begin(503, {name.replace("_", "-"): value for name, value in headers.items()})
    answer.feed(body)
    return answer


@pytest.mark.parametrize(
    "body,content_type",
    [
        (b"[" * 200_000, "application/json"),
        (b"\xff\xfe", "application/json"),
        (b'{"a": ' + b"9" * 5000 + b"}", "application/json"),
        (b"\x91" * 2000, "application/x-msgpack"),
        (b"\x81\x90\x01", "application/x-msgpack"),
        (b"\xdd\xff\xff\xff\xff", "application/x-msgpack"),
        (b"\x80\x80", "application/x-msgpack"),
    ],
    ids=["deep JSON", "no text", "a long number", "deep", "a list as a key", "billions", "two"],
)
def test_a_body_that_cannot_be_read_is_told_as_it_is(body: bytes, content_type: str) -> None:
    value = answered(body, content_type=content_type).value()
    assert value == {"message": body[:400].decode("utf-8", "replace")}


def test_a_list_is_no_map() -> None:
    assert answered(b"[1]", content_type="application/json").value() == {}


@pytest.mark.parametrize("told", ["²", "soon", "-1", "", "Sat, 28 Nov 2026 20:00:00 GMT"])
def test_only_seconds_are_waited_for(told: str) -> None:
    assert 0 < pause_seconds(0, [answered(b"", retry_after=told)]) < 1


def test_nobody_is_kept_waiting_for_ever() -> None:
    assert pause_seconds(0, [answered(b"", retry_after="9" * 400)]) == 10
