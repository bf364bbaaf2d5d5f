"""Structured logs on stderr, with everything secret taken out on the way.

Whatever goes through here, our own events or the libraries', passes `redact`: values under secret
names are replaced, and texts lose bearer tokens, our own tokens, passwords and URL signatures.
"""

from __future__ import annotations

import logging
import logging.config
import re
import sys
from collections.abc import Callable, Mapping, MutableMapping
from functools import lru_cache
from typing import Any, Literal, TextIO

import structlog
from starlette.datastructures import Secret

from gateway.settings import HIDDEN

_SECRET_NAMES = re.compile(
    r"authorization|cookie|password|passwd|secret|signature|credential|presigned|mpack_url"
    r"|(^|[_-])token$|api[_-]?key|signing[_-]?key|access[_-]?key|^url$",
    re.IGNORECASE,
)
# What a text must hold for the pattern to find anything (looking costs a tenth of searching, and
# every request writes a line), the pattern, and what stands there instead.
_IN_TEXTS: tuple[tuple[str, re.Pattern[str], str], ...] = (
    # Parameters that sign a URL, ours and SigV4's; the rest of the URL stays readable.
    (
        "=",
        re.compile(
            r"((?:^|[?&;\s\"'])(?:X-Amz-(?:Signature|Credential|Security-Token)|signature|sig|token)=)"
            r"[^&\s\"'>)]+",
            re.IGNORECASE,
        ),
        rf"\1{HIDDEN}",
    ),
    ("", re.compile(r"\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]+", re.IGNORECASE), rf"\1 {HIDDEN}"),
    ("mpk_", re.compile(r"\bmpk_[A-Za-z0-9_-]+"), f"mpk_{HIDDEN}"),
    (
        "://",
        re.compile(r"(\b[a-z][a-z0-9+.-]*://[^/\s:@]*:)[^/\s@]+@", re.IGNORECASE),
        rf"\1{HIDDEN}@",
    ),
)
_NAMES_KEPT_MAX = 1000  # Our own lines have some two hundred; a nested map's keys may be anything.
_DEPTH_MAX = 8  # Deeper values are shown by their type; a log line is no place for them.

# Libraries that say too much at `info`; botocore shows signatures at `debug`.
_QUIET = (
    *("aiobotocore", "alembic", "apscheduler", "asyncio", "botocore", "httpcore2", "httpx2"),
    "sqlalchemy",
)

# Without local variables: they are long, and hold what nobody thought of naming as a secret.
_TRACEBACKS = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
)

Processor = Callable[[Any, str, MutableMapping[str, Any]], Any]


def redact_text(text: str) -> str:
    """The text without what signs, authorises or unlocks anything."""
    for held, pattern, replacement in _IN_TEXTS:
        if held in text:
            text = pattern.sub(replacement, text)
    return text


def redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The structlog processor: every key and value of a line, at any depth."""
    for name in list(event):
        event[name] = _redacted(name, event[name], _DEPTH_MAX)
    return event


@lru_cache(_NAMES_KEPT_MAX)
def _is_secret_name(name: str) -> bool:
    return _SECRET_NAMES.search(name) is not None


def _redacted(name: str, value: Any, depth: int) -> Any:
    if isinstance(value, bool | int | float) or value is None:
        return value
    if _is_secret_name(name) or isinstance(value, Secret):
        return HIDDEN
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if depth == 0:
        return f"<{type(value).__name__}>"
    if isinstance(value, Mapping):
        return {key: _redacted(str(key), item, depth - 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_redacted(name, item, depth - 1) for item in value]
    if isinstance(value, logging.LogRecord) or name in _STRUCTLOG_OWN:
        return value
    return redact_text(str(value))


_STRUCTLOG_OWN = frozenset({"_record", "_from_structlog", "exc_info"})


def configure(
    *,
    log_format: Literal["json", "console"],
    level: str,
    stream: TextIO | None = None,
) -> None:
    """Send structlog's and the standard library's lines to stderr, in one form.

    Effects: replaces the process's logging configuration.
    """
    stream = stream or sys.stderr
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _without_colors,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _TRACEBACKS if log_format == "json" else structlog.processors.format_exc_info,
                # After the traceback has become text: it, too, may quote a URL.
                redact,
                _renderer(log_format, stream),
            ],
        )
    )
    _take_over(handler, number)


def _renderer(log_format: str, stream: TextIO) -> Processor:
    if log_format == "json":
        return structlog.processors.JSONRenderer()
    return structlog.dev.ConsoleRenderer(colors=stream.isatty())


def _without_colors(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Any:
    """Drop what uvicorn adds for its own formatter."""
    event.pop("color_message", None)
    return event


def _take_over(handler: logging.Handler, number: int) -> None:
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(number)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "apscheduler", "sqlalchemy"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    # Our summary line says more, and uvicorn's would hold the query: a URL's signature.
    logging.getLogger("uvicorn.access").disabled = True
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))
