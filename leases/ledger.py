"""What the lease machinery asks of its database: the log, the lease table, and who is alive.

`leases/postgres_ledger.py` carries it out on PostgreSQL. A second one lives in the tests, in
memory and on simulated time; one suite of tests holds both to what is said here.

Every call is one atomic step by the database's own clock. Whoever gets no answer does not know
whether the step was made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from leases.chain import StoredEvent
from leases.model import Lease


class Row(Protocol):
    """Named values."""

    def __getitem__(self, name: str, /) -> Any: ...


class Look(NamedTuple):
    """The earliest due time, how many instances live, and whether a dead one's claim stands."""

    now: datetime
    due: datetime | None
    live: int
    dead_claims: bool


class Claimed(NamedTuple):
    """A claimed lease, and how many deletions of it have failed."""

    lease: Lease
    attempts: int


@dataclass(frozen=True, slots=True)
class Due:
    """A due lease, with the attempts that the reaper noted and the database's time of the look."""

    lease: Lease
    attempts: int
    seen_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class DueNow:
    """How much is due, the earliest deadline among it, and the ids of what would go first."""

    count: int
    now: datetime
    deadline: datetime | None
    mpack_ids: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedAttempt:
    """What to note about a deletion that failed."""

    mpack_id: str
    attempts: int
    error: str
    retry_seconds: float


class Session(Protocol):
    """One connection for as long as it lasts; what it holds is freed with it."""

    def on_end(self, ended: Callable[[], None]) -> None:
        """Call this when the connection is gone."""

    async def lock(self, key: int) -> bool:
        """Take an instance's lock; False while another session holds it."""

    async def listen(self, channel: str, heard: Callable[[str, str], None]) -> None:
        """Call `heard(channel, payload)` for notifications."""

    async def ping(self) -> None:
        """See whether the connection answers."""

    def end(self) -> None:
        """Close it at once."""


class Ledger(Protocol):
    """Errors of all methods: DatabaseUnavailable. Times in rows are aware UTC instants."""

    def another(self) -> Ledger:
        """The same over connections of its own."""

    def held(self) -> Ledger:
        """The same over one connection that is kept, for one user at a time."""

    async def close(self) -> None:
        """Close its connections."""

    def session(self) -> AbstractAsyncContextManager[Session]:
        """A connection that is held for long.

        A time limit that runs out in the block leaves it as DatabaseUnavailable.
        """

    # The log. ------------------------------------------------------------------------------------

    async def append(self, columns: Sequence[Sequence[Any]]) -> Row:
        """One call of the function `append_events`: its arguments in order, its answer's row."""

    async def places(self, event_ids: Sequence[UUID]) -> Sequence[Sequence[Any]]:
        """Position, version and time of those of these events that stand in the log."""

    async def head(self) -> Row:
        """The head's log_id, position, hash, recorded_at; and the database's `now`."""

    async def read(
        self, *, after: int, limit: int, stream: str | None = None
    ) -> Sequence[StoredEvent]:
        """Events behind a position, in order; of a `stream`, behind a version."""

    async def links(self, *, after: int, until: int, limit: int) -> Sequence[Any]:
        """The same as the chain hashes them: `event_id` as bytes, the time as microseconds."""

    async def newest(self, stream: str) -> Row:
        """A stream's `version` (0: none), its last event's `type`, `actor` and `data`; `log_id`."""

    async def streams_with(self, streams: Sequence[str], *, type: str | None = None) -> set[str]:  # noqa: A002
        """Those of these streams that exist, archived ones too; with a `type`, that have one."""

    # Leases. -------------------------------------------------------------------------------------

    async def leases(self, mpack_ids: Sequence[str]) -> tuple[Mapping[str, Lease], datetime]:
        """Those of these that there are, by id, as they stand; and the database's now."""

    async def active(
        self, *, before: datetime, after: str, limit: int
    ) -> Sequence[tuple[str, str]]:
        """Id and key of leases activated before then, with ids behind `after`, in order."""

    # Claims. -------------------------------------------------------------------------------------

    async def claim(
        self, count: int, name: str, *, limit: timedelta, token: UUID, overdue: timedelta
    ) -> tuple[int, datetime]:
        """Claim up to so many due leases, oldest first; how many, and as of when."""

    async def claimed(self, name: str, token: UUID) -> Sequence[Claimed]:
        """What was claimed so, and is still."""

    async def give_back(
        self, mpack_ids: Sequence[str], token: UUID, *, pause_seconds: float
    ) -> None:
        """End these claims, where they still stand, until after a pause."""

    async def count_failures(self, failures: Sequence[FailedAttempt], token: UUID) -> None:
        """The same with a failed attempt noted on each."""

    async def release(self, names: Sequence[str], tokens: Sequence[UUID]) -> None:
        """End whatever claims stand under these names and tokens."""

    async def attempts(self, mpack_id: str) -> int:
        """How many deletions of it have failed."""

    async def forget_attempts(self, mpack_id: str) -> None:
        """Count anew and look now, unless it is claimed."""

    async def due(self, count: int | None, *, overdue: timedelta, named: int) -> DueNow:
        """What `claim` would take; None: all there is. So many of the ids are told."""

    async def look_ahead(self) -> Look:
        """When somebody has to look next."""

    async def free_dead_claims(self) -> int:
        """End the claims of instances that are dead; how many there were."""
