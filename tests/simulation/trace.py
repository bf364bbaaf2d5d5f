"""What happened, in order: a hash of all of it, and the newest lines to read."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from hashlib import sha256

_LINES_MAX = 200_000


class Trace:
    """Every effect is one line; equal runs have equal hashes."""

    def __init__(self, time: Callable[[], float]) -> None:
        self._time = time
        self._hash = sha256()
        self._lines: deque[str] = deque(maxlen=_LINES_MAX)
        self.count = 0

    def __call__(self, who: str, what: str) -> None:
        line = f"{self._time():12.6f} {who:8} {what}"
        self._hash.update(line.encode())
        self._lines.append(line)
        self.count += 1

    @property
    def hash(self) -> str:
        """Of all lines so far."""
        return self._hash.hexdigest()

    def about(self, *words: str, limit: int = 40) -> list[str]:
        """The newest lines that hold one of these words."""
        found = [line for line in self._lines if any(word in line for word in words)]
        return found[-limit:]
