"""Events to their stored form and back: JSON with sorted keys, no spaces, times as RFC 3339.

The stored text is what is hashed, so the same event always has the same text. A reader skips no
event: a type or a form it does not know is an error that a human must see.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any, get_args, get_type_hints

from leases.errors import LogCorrupt
from leases.model import Event

SCHEMA_VERSION = 1

JSON = str | int | float | bool | None | list["JSON"] | Mapping[str, "JSON"]

_BY_TYPE: dict[str, type[Any]] = {kind.type: kind for kind in get_args(Event)}
_FIELDS = {name: tuple(field.name for field in fields(kind)) for name, kind in _BY_TYPE.items()}
_HINTS: dict[str, dict[str, Any]] = {name: get_type_hints(kind) for name, kind in _BY_TYPE.items()}


# Made once: making one takes about as long as encoding an event.
_ENCODER = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
)


def dump(data: Mapping[str, Any]) -> str:
    """The one text of a map; NaN and infinities are refused (ValueError)."""
    return _ENCODER.encode(data)


# Of a batch, all events name the same moments.
@lru_cache(maxsize=256)
def instant(moment: datetime) -> str:
    """RFC 3339 in UTC with six digits, so that texts sort as the times do."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def encode(event: Event) -> dict[str, JSON]:
    """The event's fields as JSON values; absent values are left out."""
    data: dict[str, JSON] = {}
    for name in _FIELDS[event.type]:
        value = getattr(event, name)
        if value is not None:
            data[name] = instant(value) if isinstance(value, datetime) else value
    return data


def _decode_value(hint: Any, value: Any) -> Any:
    choices = [choice for choice in get_args(hint) if choice is not type(None)] or [hint]
    kind = choices[0]
    if kind is datetime:
        return datetime.fromisoformat(value)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return kind(value)
    return value


def decode(type_: str, schema_version: int, data: str) -> Event:
    """The event of a stored row; `LogCorrupt` where this code cannot read it."""
    kind = _BY_TYPE.get(type_)
    if kind is None or schema_version != SCHEMA_VERSION:
        raise LogCorrupt("This event's form is unknown.", type=type_, schema_version=schema_version)
    hints = _HINTS[type_]
    try:
        event: Event = kind(
            **{
                name: _decode_value(hints[name], value)
                for name, value in json.loads(data).items()
                if name in _FIELDS[type_]
            }
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise LogCorrupt("This event cannot be read.", type=type_) from error
    return event
