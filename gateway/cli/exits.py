"""The exit codes, and how an error becomes one."""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any, TypeVar

import click

from leases.errors import Conflict, Failure, InvalidRequest, NotFound, Unavailable

T = TypeVar("T")


class Exit(IntEnum):
    """What a command's end means to a script."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOTHING_MATCHED = 3
    PARTIAL = 4
    TRY_LATER = 75  # EX_TEMPFAIL of sysexits.h


def exit_code_of(error: Failure) -> Exit:
    """The exit code for a failure, by its kind."""
    if isinstance(error, NotFound):
        return Exit.NOTHING_MATCHED
    if isinstance(error, InvalidRequest):
        return Exit.USAGE
    if isinstance(error, Unavailable | Conflict):
        return Exit.TRY_LATER
    return Exit.FAILED


@contextmanager
def told() -> Iterator[None]:
    """Turn an error into a sentence on stderr and its exit code."""
    from gateway.environment import SettingsInvalid

    try:
        yield
    except SettingsInvalid as error:
        click.echo(str(error), err=True)
        raise SystemExit(Exit.USAGE) from None
    except Failure as error:
        click.echo(str(error), err=True)
        raise SystemExit(exit_code_of(error)) from None


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's work to its end; errors become sentences and exit codes."""
    import asyncio

    with told():
        return asyncio.run(work)
