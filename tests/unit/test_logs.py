"""No secret passes the log, whoever wrote the line."""

from __future__ import annotations

import io
import json
import logging
from typing import Any, Literal

import pytest
import structlog
from starlette.datastructures import Secret

from gateway.logs import configure, redact_text

TOKEN = "mpk_" + "ab" * 24
SIGNED = (
    "https://s3.example/b/k?X-Amz-Credential=AKIA%2F2026&X-Amz-Signature=5ec7e7&X-Amz-Expires=9"
)
LOCAL = "http://127.0.0.1/blobs/transient/a/b?expires=1&signature=5ec7e7"


def lines(form: Literal["json", "console"], write: Any) -> str:
    stream = io.StringIO()
    configure(log_format=form, level="info", stream=stream)
    write(structlog.get_logger("gateway.test"))
    return stream.getvalue()


@pytest.mark.parametrize(
    "text, kept",
    [
        (SIGNED, "https://s3.example/b/k"),
        (LOCAL, "expires=1"),
        (f"Authorization: Bearer {TOKEN}", "Bearer"),
        (f"the token {TOKEN} was used", "was used"),
        ("postgresql+asyncpg://me:5ec7e7@db/x", "postgresql+asyncpg://me:"),
        ("BASIC\t5ec7e7", "BASIC"),
        ("sig=5ec7e7", "sig="),
    ],
    ids=["sigv4", "local", "bearer", "token", "password", "basic", "parameter"],
)
def test_a_text_loses_its_secret_and_nothing_else(text: str, kept: str) -> None:
    shown = redact_text(text)
    assert kept in shown
    assert "5ec7e7" not in shown
    assert TOKEN not in shown
    assert "AKIA" not in shown


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.usefixtures("logging_restored")
def test_no_line_holds_a_secret(form: Literal["json", "console"]) -> None:
    def write(log: Any) -> None:
        log.info("a", mpack_url=LOCAL, headers={"Authorization": f"Bearer {TOKEN}"})
        log.info("b", nested=[{"deep": {"signature": "5ec7e7"}}, SIGNED], key=Secret("5ec7e7"))
        log.info("c", token=TOKEN, password="5ec7e7", detail=f"at {LOCAL}")
        log.info(SIGNED)
        logging.getLogger("sqlalchemy").warning("at %s with %s", SIGNED, TOKEN)
        try:
            int(f"GET {LOCAL} {TOKEN}")
        except ValueError:
            log.exception("e")
        logging.getLogger("uvicorn.access").info("GET %s", LOCAL)

    told = lines(form, write)
    assert told.count("ValueError") >= 1
    assert "5ec7e7" not in told
    assert TOKEN not in told
    assert "AKIA" not in told


@pytest.mark.usefixtures("logging_restored")
def test_a_json_line_is_one_object_with_what_is_bound() -> None:
    def write(log: Any) -> None:
        with structlog.contextvars.bound_contextvars(request_id="r1"):
            log.info("lease_reclaimed", mpack_id="0a", lateness_ms=3)

    (line,) = lines("json", write).splitlines()
    told = json.loads(line)
    assert told.pop("timestamp")
    assert told == {
        "event": "lease_reclaimed",
        "level": "info",
        "logger": "gateway.test",
        "mpack_id": "0a",
        "lateness_ms": 3,
        "request_id": "r1",
    }


@pytest.mark.usefixtures("logging_restored")
def test_debug_lines_stay_out() -> None:
    assert lines("json", lambda log: log.debug("quiet")) == ""


@pytest.mark.usefixtures("logging_restored")
def test_a_traceback_shows_no_local_variables() -> None:
    stream = io.StringIO()
    configure(log_format="json", level="info", stream=stream)
    said = "unlike any secret"
    try:
        len(said) // 0
    except ZeroDivisionError:
        structlog.get_logger().exception("failed")
    told = json.loads(stream.getvalue())
    assert told["exception"][0]["exc_type"] == "ZeroDivisionError"
    assert said not in stream.getvalue()
