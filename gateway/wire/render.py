"""Which form an answer takes, and the answer itself.

Every 2xx of the wire calls is msgpack, whatever Accept lists first: the Muse client lists both and
reads msgpack alone. JSON goes to callers who accept nothing else. `/v1` and the health calls turn
that round, and errors too: a client that shows the start of a body should show a sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
from starlette.requests import HTTPConnection
from starlette.responses import Response

from gateway.errors import UnsupportedMediaType

BodyFormat = Literal["msgpack", "json"]

MSGPACK = "application/x-msgpack"
JSON = "application/json"
_MSGPACK_TYPES = frozenset({MSGPACK, "application/msgpack", "application/vnd.msgpack"})
_ANY = frozenset({"*/*", "application/*"})


def render(
    connection: HTTPConnection,
    data: Mapping[str, Any],
    *,
    default: BodyFormat = "msgpack",
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The answer in the form this caller reads.

    Shapes:  data: maps, lists, texts, numbers, bytes (base64 in JSON) and aware datetimes
             (RFC 3339 texts in both forms).
    """
    if _wanted(connection, default=default) == "json":
        content, media_type = json_bytes(data), JSON
    else:
        content, media_type = msgspec.msgpack.encode(_plain(data)), MSGPACK
    all_headers = {"Cache-Control": "no-store", "Vary": "Accept", **(headers or {})}
    return Response(content, status_code=status, headers=all_headers, media_type=media_type)


def encoder(
    connection: HTTPConnection, *, default: BodyFormat = "msgpack"
) -> Callable[[Any], msgspec.Raw]:
    """What makes a part of the answer to this caller ready for `render`, so that a long list need
    not be held as objects.
    """
    as_json = _wanted(connection, default=default) == "json"
    encode = msgspec.json.encode if as_json else msgspec.msgpack.encode
    return lambda part: msgspec.Raw(encode(part))


def json_bytes(data: Mapping[str, Any]) -> bytes:
    """A map as one line of JSON, in the form that answers have."""
    return msgspec.json.encode(_plain(data))


def _wanted(connection: HTTPConnection, *, default: BodyFormat) -> BodyFormat:
    return wanted_format(",".join(connection.headers.getlist("accept")), default=default)


def wanted_format(accept: str, *, default: BodyFormat) -> BodyFormat:
    """The default, unless the caller accepts only the other one."""
    ranges = accepted(accept)
    if not ranges or ranges & _ANY:
        return default
    takes = {"json": JSON in ranges, "msgpack": bool(ranges & _MSGPACK_TYPES)}
    other: BodyFormat = "json" if default == "msgpack" else "msgpack"
    return other if takes[other] and not takes[default] else default


def body_format(content_type: str | None) -> BodyFormat:
    """How a request's body is written; msgpack when it does not say."""
    media_type = (content_type or MSGPACK).partition(";")[0].strip().lower()
    if media_type == JSON:
        return "json"
    if media_type not in _MSGPACK_TYPES:
        raise UnsupportedMediaType
    return "msgpack"


def rfc3339(moment: datetime) -> str:
    """A moment as text: UTC, milliseconds."""
    text = moment.astimezone(UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def accepted(accept: str) -> set[str]:
    """The media types that a caller takes."""
    ranges = set()
    for item in accept.split(","):
        media_range, *parameters = [part.strip().lower() for part in item.split(";")]
        if media_range and not any(_is_zero(parameter) for parameter in parameters):
            ranges.add(media_range)
    return ranges


def _is_zero(parameter: str) -> bool:
    name, _, value = parameter.partition("=")
    return name.strip() == "q" and value.strip().strip("0").strip(".") == "" and "0" in value


def _plain(value: Any) -> Any:
    """Datetimes as texts; msgpack has a type of its own for them, which few clients know."""
    if isinstance(value, str):  # Lists may hold a million ids.
        return value
    if isinstance(value, datetime):
        return rfc3339(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
