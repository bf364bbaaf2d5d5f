"""How commands print: data on stdout, as JSON or as lines a person reads."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click

# What a line shows of an event's data, in this order; the rest is in --json.
_TOLD = ("outcome", "lateness_ms", "delete_at", "size_bytes", "reason", "error", "branch", "head")


def print_json(value: Any) -> None:
    """One JSON document."""
    import msgspec

    from gateway.wire.render import json_bytes

    click.echo(msgspec.json.format(json_bytes(value), indent=2).decode())


def line_of(value: Any) -> str:
    """One JSON document on one line, for streams of them."""
    from gateway.wire.render import json_bytes

    return json_bytes(value).decode()


def print_line(value: Any) -> None:
    """One JSON document on one line."""
    click.echo(line_of(value))


def print_pairs(pairs: Mapping[str, Any]) -> None:
    """A map as lines: name, value."""
    width = max((len(name) for name in pairs), default=0)
    for name, value in pairs.items():
        click.echo(f"{name:<{width}}  {shown(value)}".rstrip())


def print_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Rows as a table: drawn on a terminal, tab-separated with a header elsewhere."""
    if sys.stdout.isatty():
        _draw(rows, columns)
        return
    click.echo("\t".join(columns))
    for row in rows:
        click.echo("\t".join(shown(row[name]) for name in columns))


def _draw(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Aligned and whole: an id that is cut off cannot be used, a line that is wrapped can."""
    cells = [[_on_terminal(row[name]) for name in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    numeric = [all(isinstance(row[name], int) for row in rows) for name in columns]

    def line(words: Sequence[str]) -> str:
        placed = zip(words, widths, numeric, strict=True)
        return "  ".join(f"{word:>{w}}" if n else f"{word:<{w}}" for word, w, n in placed).rstrip()

    click.echo(click.style(line(columns), bold=True))
    for words in cells:
        click.echo(line(words))


def _on_terminal(value: Any) -> str:
    """Times to the second: a table is for finding one's row, --json for the rest."""
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}"
    return shown(value)


def shown(value: Any) -> str:
    """A value as a person reads it."""
    from gateway.wire.render import rfc3339

    if value is None:
        return "-"
    if isinstance(value, datetime):
        return rfc3339(value)
    return str(value)


def told_of(data: Mapping[str, Any]) -> str:
    """What an event's data says that a person looks for."""
    return " ".join(f"{name}={data[name]}" for name in _TOLD if data.get(name) is not None)
