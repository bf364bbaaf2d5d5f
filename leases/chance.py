"""Where random bytes and numbers come from: the system, unless somebody wants a run repeated."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

# Asking the system for random bytes costs as much for one id as for hundreds.
_RANDOM_BYTES_AT_ONCE = 4096


class Chance(Protocol):
    """A source of chance."""

    def randbytes(self, count: int, /) -> bytes: ...

    def uniform(self, least: float, most: float, /) -> float: ...


class SystemChance:
    """The operating system's, which nobody can foretell."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        os.register_at_fork(after_in_child=self._bytes.clear)

    def randbytes(self, count: int, /) -> bytes:
        """Bytes that are given to nobody else."""
        if len(self._bytes) < count:
            self._bytes.extend(os.urandom(max(count, _RANDOM_BYTES_AT_ONCE)))
        own = bytes(self._bytes[-count:])
        del self._bytes[-count:]
        return own

    def uniform(self, least: float, most: float, /) -> float:
        """A number that spreads load, and guards nothing."""
        return random.uniform(least, most)  # noqa: S311


_source: ContextVar[Chance] = ContextVar("chance", default=SystemChance())  # noqa: B039  fork-safe


def chance() -> Chance:
    """The source of this context."""
    return _source.get()


@contextmanager
def chance_from(source: Chance) -> Iterator[None]:
    """Use `source`, such as a seeded `random.Random`, in this context and in its tasks."""
    token = _source.set(source)
    try:
        yield
    finally:
        _source.reset(token)
