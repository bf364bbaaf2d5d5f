"""Reads dataclasses of settings out of environment variables, and says everything that is wrong.

A field `port` is read from `MPACK_PORT`, or from the file that `MPACK_PORT_FILE` names (for
secrets). A field that is itself a dataclass is a group: its fields are read by their own names.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Secret

PREFIX = "MPACK_"
_FILE = "_FILE"
_INTEGER = re.compile(r"[+-]?\d{1,18}\Z", re.ASCII)
_NUMBER = re.compile(r"[+-]?\d{1,18}(\.\d{1,18})?\Z", re.ASCII)
_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True} | {
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}
_SECRET_FILE_BYTES_MAX = 65_536  # A key or a URL; anything longer is the wrong file.

Group = TypeVar("Group")


class SettingsInvalid(Exception):
    """The settings cannot be used as they stand."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("The settings cannot be used:\n" + "\n".join(f"- {p}" for p in problems))


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedField:
    """One setting: where it lives, and the type it must have."""

    name: str
    group: str | None
    type: Any
    required: bool
    default: Any

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return PREFIX + self.name.upper()


def named_fields(structure: type[Any], group: str | None = None) -> Iterator[NamedField]:
    """Every setting of a dataclass, those of its groups included, in the order written."""
    hints = get_type_hints(structure)
    for item in fields(structure):
        kind = hints[item.name]
        if is_dataclass(kind) and isinstance(kind, type):
            yield from named_fields(kind, item.name)
        else:
            yield NamedField(
                name=item.name,
                group=group,
                type=kind,
                required=item.default is MISSING and item.default_factory is MISSING,
                default=_default(item),
            )


def _default(item: Field[Any]) -> Any:
    if item.default is not MISSING:
        return item.default
    return None if item.default_factory is MISSING else item.default_factory()


def read(structure: type[Group], environ: Mapping[str, str]) -> tuple[Group | None, list[str]]:
    """Build the structure from the environment.

    Result:  the structure, or None where a value is missing or unreadable, and every problem.
    """
    known = {item.variable: item for item in named_fields(structure)}
    problems = list(_unknown(environ, known))
    values: dict[str | None, dict[str, Any]] = {}
    for item in known.values():
        try:
            text = _text(item, environ)
            if text is not None:
                values.setdefault(item.group, {})[item.name] = _convert(item, text)
            elif item.required:
                problems.append(f"{item.variable} is needed.")
        except ValueError as refused:
            problems.append(str(refused))
    if problems:
        return None, problems
    top = dict(values.pop(None, {}))
    hints = get_type_hints(structure)
    for group, inner in values.items():
        assert group is not None
        top[group] = hints[group](**inner)
    return structure(**top), []


def parts_of(url: str) -> SplitResult | None:
    """A URL's parts; None where its host or its port cannot be read."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return parts


def _unknown(environ: Mapping[str, str], known: Mapping[str, NamedField]) -> Iterator[str]:
    for variable in sorted(environ):
        if not variable.startswith(PREFIX):
            continue
        name = variable.removesuffix(_FILE)
        if variable in known or name in known:
            continue
        close = get_close_matches(name, known, n=1)
        yield f"{variable} is not a setting" + (f"; is {close[0]} meant?" if close else ".")


def _text(item: NamedField, environ: Mapping[str, str]) -> str | None:
    """The value as text; an empty one counts as not set, as compose files leave it."""
    direct = environ.get(item.variable, "")
    file = environ.get(item.variable + _FILE, "")
    if direct and file:
        message = f"{item.variable} and {item.variable}{_FILE} are both set; one must go."
        raise ValueError(message)
    if not file:
        return direct or None
    try:
        content = Path(file).read_bytes()[: _SECRET_FILE_BYTES_MAX + 1]
        if len(content) > _SECRET_FILE_BYTES_MAX:
            message = f"{item.variable}{_FILE}: {file} is too long for a setting."
            raise ValueError(message)
        return content.decode().strip()
    except OSError as refused:
        message = f"{item.variable}{_FILE}: {file} cannot be read ({refused.strerror})."
        raise ValueError(message) from refused
    except UnicodeDecodeError as refused:
        message = f"{item.variable}{_FILE}: {file} is not text."
        raise ValueError(message) from refused


def _convert(item: NamedField, text: str) -> Any:
    kind = _without_none(item.type)
    convert = _BY_TYPE.get(kind)
    try:
        if convert is not None:
            return convert(text)
        return _one_of(kind, text)
    except ValueError as refused:
        # The value itself is shown only where it cannot be a secret.
        shown = "" if kind is Secret else f", not {text[:80]!r}"
        message = f"{item.variable} must be {refused}{shown}."
        raise ValueError(message) from None


def _without_none(kind: Any) -> Any:
    if get_origin(kind) in (Union, types.UnionType):
        (kind,) = [part for part in get_args(kind) if part is not type(None)]
    return kind


def _one_of(kind: Any, text: str) -> Any:
    if isinstance(kind, type) and issubclass(kind, Enum):
        choices: dict[str, Any] = {str(member.value): member for member in kind}
    else:
        assert get_origin(kind) is Literal, f"settings cannot be of type {kind}"
        choices = {choice: choice for choice in get_args(kind)}
    if text not in choices:
        raise ValueError("one of " + ", ".join(sorted(choices)))
    return choices[text]


def _integer(text: str) -> int:
    if _INTEGER.match(text) is None:
        raise ValueError("a whole number")
    return int(text)


def _number(text: str) -> float:
    if _NUMBER.match(text) is None:
        raise ValueError("a number")
    return float(text)


def _boolean(text: str) -> bool:
    if text.lower() not in _BOOLEANS:
        raise ValueError("true or false")
    return _BOOLEANS[text.lower()]


_BY_TYPE: dict[Any, Callable[[str], Any]] = {
    str: str,
    int: _integer,
    float: _number,
    bool: _boolean,
    Path: Path,
    Secret: Secret,
}
