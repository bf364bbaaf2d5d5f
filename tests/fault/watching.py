"""When did each blob of a store go? Seen from outside, told in the database's time.

A thread lists the store a hundred times a second, or as often as it can. A blob went after the
last listing that had it began, and before the first one without it ended: what both bounds prove
is exact under any load.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self

from leases.clock import SystemClock
from leases.database import Database
from tests.stores import ON_S3, StoreView

# Listing a full bucket is work for the server, which has other things to do just then.
_PAUSE_SECONDS = 0.2 if ON_S3 else 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseTime:
    """The database's clock against this process's monotonic one: an instant read between two."""

    now: datetime
    asked_at: float
    answered_at: float

    @classmethod
    async def read(cls, database: Database) -> Self:
        clock = SystemClock()
        asked_at = clock.monotonic()
        row = await database.row("SELECT clock_timestamp() AS now")
        return cls(now=row["now"], asked_at=asked_at, answered_at=clock.monotonic())

    def latest(self, monotonic: float) -> datetime:
        """No later than this was it then."""
        return self.now + timedelta(seconds=monotonic - self.asked_at)

    def earliest(self, monotonic: float) -> datetime:
        """No earlier than this was it then."""
        return self.now + timedelta(seconds=monotonic - self.answered_at)


@dataclass(slots=True)
class BlobWatch:
    """Watches for the time of its block; `went` then holds both bounds for every gone blob.

    The first look is over before the block begins, which may take the store away at once.
    """

    store: StoreView
    went: dict[str, tuple[float, float]] = field(default_factory=dict)
    _there: set[str] = field(default_factory=set)
    _there_at: float = 0.0
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._there_at = SystemClock().monotonic()
        self._there = self.store.packs()
        self._thread = threading.Thread(target=self._watch, name="blob-watch")
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        assert self._thread is not None
        self._thread.join()

    def _watch(self) -> None:
        clock = SystemClock()
        stopping = False
        while not stopping:
            stopping = self._stop.wait(_PAUSE_SECONDS)  # One last look after the stop.
            began_at = clock.monotonic()
            try:
                names = self.store.packs()
            except FileNotFoundError:
                continue  # Nothing can be said about a store that is away.
            ended_at = clock.monotonic()
            for name in self._there - names:
                self.went[name] = (self._there_at, ended_at)
            self._there, self._there_at = names, began_at

    def early(self, due: Mapping[str, datetime], time: DatabaseTime) -> list[str]:
        """Those that went before they were due; what is not sure counts for them."""
        ends = ((name, end) for name, (_, end) in self.went.items())
        return [name for name, end in ends if name in due and time.latest(end) < due[name]]

    def check_in_time(
        self, names: list[str], due_at: datetime, time: DatabaseTime, *, late_seconds_max: float
    ) -> None:
        """Every one of these went, none of them before its deadline, none long after it."""
        assert sorted(self.went) == sorted(names)
        assert self.early(dict.fromkeys(names, due_at), time) == []
        bound = due_at + timedelta(seconds=late_seconds_max)
        late = [name for name, (begin, _) in self.went.items() if time.earliest(begin) > bound]
        assert late == []
