"""The signals by which one ends a process; it goes by its `finally` blocks, and these whole."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def ended_by_signals(*, code: int | None = None) -> AbstractContextManager[None]:
    """Signals end the block as an exit of the process would, with this code or the shell's own."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number if code is None else code)

    return _handled(end)


def undisturbed() -> AbstractContextManager[None]:
    """A second Ctrl-C does not interrupt the block, which cleans up behind the first."""
    return _handled(signal.SIG_IGN)


@contextmanager
def _handled(
    handler: Callable[[int, FrameType | None], None] | signal.Handlers,
) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in _ENDINGS}
    try:
        yield
    finally:
        for number, handled in before.items():
            signal.signal(number, handled)
