"""Ctrl-C in the middle of batches: the one under way is finished, and no other is begun."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import click

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stoppable(*, quietly: bool = False) -> Iterator[asyncio.Event]:
    """An event that the first Ctrl-C (or SIGTERM) sets; the second one ends the process at once."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    settled = False

    def asked() -> None:
        stop.set()
        settle()
        if not quietly:
            click.echo("Finishing the batch under way; Ctrl-C again stops at once.", err=True)

    def settle() -> None:
        nonlocal settled
        if not settled:
            settled = True
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    for number in _SIGNALS:
        loop.add_signal_handler(number, asked)
    try:
        yield stop
    finally:
        settle()
