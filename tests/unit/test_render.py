"""Which form an answer takes."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import msgpack
import pytest
from starlette.requests import Request

from gateway.errors import UnsupportedMediaType
from gateway.wire.render import BodyFormat, body_format, render, rfc3339, wanted_format

MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678_900, tzinfo=UTC)


@pytest.mark.parametrize(
    "accept, wire, operators",
    [
        ("", "msgpack", "json"),
        ("*/*", "msgpack", "json"),
        ("application/x-msgpack, application/json", "msgpack", "json"),
        ("application/json, application/x-msgpack", "msgpack", "json"),
        ("application/json", "json", "json"),
        ("Application/JSON; charset=utf-8", "json", "json"),
        ("application/json, */*;q=0.1", "msgpack", "json"),
        ("application/json, application/x-msgpack;q=0", "json", "json"),
        ("application/json, application/x-msgpack; q=0.0", "json", "json"),
        ("application/x-msgpack", "msgpack", "msgpack"),
        ("application/vnd.msgpack", "msgpack", "msgpack"),
        ("text/html", "msgpack", "json"),
        (";;,,=", "msgpack", "json"),
    ],
)
def test_the_other_form_is_for_those_who_ask_for_it_alone(
    accept: str, wire: BodyFormat, operators: BodyFormat
) -> None:
    assert wanted_format(accept, default="msgpack") == wire
    assert wanted_format(accept, default="json") == operators


def answer(accept: str, data: dict[str, Any]) -> tuple[str, bytes]:
    scope = {"type": "http", "headers": [(b"accept", accept.encode())]}
    response = render(Request(scope), data)
    return response.headers["content-type"], bytes(response.body)


def test_both_forms_hold_the_same() -> None:
    data = {"at": MOMENT, "bytes": b"\0\xff", "list": [{"n": 1}], "none": None}
    kind, body = answer("application/x-msgpack", data)
    assert kind == "application/x-msgpack"
    assert msgpack.unpackb(body) == data | {"at": "2026-01-02T03:04:05.678Z"}
    kind, body = answer("application/json", data)
    assert kind == "application/json"
    assert json.loads(body) == data | {"at": "2026-01-02T03:04:05.678Z", "bytes": "AP8="}


def test_moments_are_utc_with_milliseconds() -> None:
    assert rfc3339(MOMENT) == "2026-01-02T03:04:05.678Z"


@pytest.mark.parametrize(
    "content_type, form",
    [
        (None, "msgpack"),
        ("application/x-msgpack", "msgpack"),
        ("application/msgpack", "msgpack"),
        ("application/json; charset=utf-8", "json"),
    ],
)
def test_a_body_is_read_as_it_says(content_type: str | None, form: str) -> None:
    assert body_format(content_type) == form


def test_another_media_type_is_refused() -> None:
    with pytest.raises(UnsupportedMediaType):
        body_format("application/x-www-form-urlencoded")
