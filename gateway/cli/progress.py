"""How long work tells that it is under way: a bar on a terminal, one line a batch elsewhere.

On stderr, so that what the command answers stays alone on stdout.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

# tell(done): so many are done now, counted from the beginning.
Tell = Callable[[int], None]


@contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Tell]:
    """Tell of `total` things (None: nobody knows how many) being done."""
    if sys.stderr.isatty():
        with _bar(what, total) as tell:
            yield tell
        return

    def line(done: int) -> None:
        of = "" if total is None else f" of {total:,}"
        click.echo(f"{what}: {done:,}{of}", err=True)

    yield line


@contextmanager
def _bar(what: str, total: int | None) -> Iterator[Tell]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as shown:
        task = shown.add_task(what, total=total)
        yield lambda done: shown.update(task, completed=done)
