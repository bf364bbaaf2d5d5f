"""Watches a blob until it is gone, and remembers when that was."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import Self

from leases.clock import SystemClock

_LOOK_SECONDS = 0.002  # Finer than the figure that is told.


class Watch:
    """A thread that looks at one blob all the time; leave the context to end it early."""

    def __init__(self, is_there: Callable[[], bool]) -> None:
        self._is_there = is_there
        self._clock = SystemClock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="demo-watch", daemon=True)
        self.last_seen_at: datetime | None = None
        self.gone_at: datetime | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._thread.join()

    def wait(self, until: datetime) -> bool:
        """Whether the blob was gone by this moment of the wall clock."""
        while self.gone_at is None:
            left = (until - self._clock.now()).total_seconds()
            if left <= 0:
                return False
            self._thread.join(min(left, 1.0))
        return True

    def _look(self) -> None:
        while not self._over.is_set():
            # The time is taken before the look for "still there" and after it for "gone": each
            # errs against us.
            before = self._clock.now()
            if not self._is_there():
                self.gone_at = self._clock.now()
                return
            self.last_seen_at = before
            time.sleep(_LOOK_SECONDS)
