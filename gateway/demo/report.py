"""What the demonstration says: chapters, and a tick with a figure for all that was true."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable

import click

_WIDTH_MAX = 100
_FIGURE_WIDTH = 30  # Where they fit, figures stand below each other.


class Report:
    """Prints as it goes, and remembers whether everything held."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self._chapters = 0
        self._width = min(_WIDTH_MAX, shutil.get_terminal_size((_WIDTH_MAX, 0)).columns)
        encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower()
        self._tick, self._cross = ("✓", "✗") if "utf" in encoding else ("ok", "NO")

    def chapter(self, title: str) -> None:
        """The next part of the story."""
        self._chapters += 1
        click.echo()
        click.secho(f"{self._chapters}  {title}", bold=True)

    def check(self, what: str, true: bool, figure: str = "") -> None:  # noqa: FBT001  it reads well
        """Something that must hold, and the number that shows it."""
        if not true:
            self.failed.append(what)
        mark = click.style(self._tick, fg="green") if true else click.style(self._cross, fg="red")
        for number, line in enumerate(_columns(what, figure, self._width)):
            click.echo(f"   {mark if number == 0 else ' '} {line}")

    def note(self, text: str) -> None:
        """Something to know, nothing to prove."""
        click.echo(f"     {text}")

    def table(self, rows: Iterable[tuple[str, ...]]) -> None:
        """Lines in columns; a terminal that is narrower wraps them, and nothing is lost."""
        all_rows = list(rows)
        widths = [max(map(len, column)) for column in zip(*all_rows, strict=True)]
        for row in all_rows:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            click.echo(f"     {'  '.join(cells)}"[:_WIDTH_MAX].rstrip())


def _columns(what: str, figure: str, width: int) -> list[str]:
    """One line when both fit, else the figure on a line of its own."""
    if not figure:
        return [what]
    column = width - _FIGURE_WIDTH
    if len(what) < column - 1 and column + len(figure) + 5 <= width:
        return [f"{what:<{column - 1}} {figure}"]
    if len(what) + len(figure) + 7 <= width:
        return [f"{what}  {figure}"]
    return [what, figure]


def seconds(value: float) -> str:
    """A duration as a person says it."""
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def size(value: int) -> str:
    """A number of bytes as a person says it."""
    if value < 10_000:
        return f"{value:,} B"
    return f"{value / 1000:,.0f} kB" if value < 10_000_000 else f"{value / 1_000_000:,.1f} MB"
