"""The ledger on `Records`: every call crosses a wire, which may be slow, torn or silent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Protocol, TypeVar
from uuid import UUID

from leases.chain import StoredEvent
from leases.errors import DatabaseUnavailable
from leases.ledger import Claimed, DueNow, FailedAttempt, Look, Row
from leases.model import Lease
from tests.simulation.records import Records

T = TypeVar("T")


class Wire(Protocol):
    """Between one process and the database."""

    async def call(self, name: str, work: Callable[[], T]) -> T:
        """Have `work` done there at one moment, and bring the answer.

        Errors: DatabaseUnavailable, after which it may be done, or be done later, or never.
        """

    def opened(self, session: SimulatedSession) -> None:
        """This session is open; whoever breaks the wire ends it."""

    def ended(self, session: SimulatedSession) -> None:
        """The process closed it: have the server free it, as soon as it can know."""


class SimulatedSession:
    """A session: its locks stand until the server notices that it is over."""

    def __init__(self, records: Records, wire: Wire) -> None:
        self._records = records
        self._wire = wire
        self._ended: list[Callable[[], None]] = []
        self.is_open = True
        self.lost = False

    def on_end(self, ended: Callable[[], None]) -> None:
        self._ended.append(ended)

    async def lock(self, key: int) -> bool:
        return await self._call("lock", lambda: self._records.locks.setdefault(key, self) is self)

    async def listen(self, channel: str, heard: Callable[[str, str], None]) -> None:
        """Nobody in a simulation waits for notifications."""

    async def ping(self) -> None:
        await self._call("ping", lambda: None)

    def end(self) -> None:
        if self.is_open:
            self._wire.ended(self)
            self.noticed()

    async def _call(self, name: str, work: Callable[[], T]) -> T:
        if not self.is_open:
            raise DatabaseUnavailable(cause="session ended")
        if self.lost:  # The server has ended it; the first use finds out.
            await self._wire.call("reset", lambda: None)
            self.noticed()
            raise DatabaseUnavailable(cause="session lost")
        return await self._wire.call(name, work)

    def freed(self) -> None:
        """The server sees that it is over."""
        for key in [key for key, holder in self._records.locks.items() if holder is self]:
            del self._records.locks[key]

    def noticed(self) -> None:
        """The process sees it."""
        self.is_open = False
        for ended in self._ended:
            ended()


class SimulatedLedger:
    """Carries out `leases.ledger.Ledger` on `records`."""

    def __init__(self, records: Records, wire: Wire) -> None:
        self._records = records
        self._wire = wire

    def another(self) -> SimulatedLedger:
        return self

    def held(self) -> SimulatedLedger:
        return self

    async def close(self) -> None:
        """There is nothing to close."""

    @asynccontextmanager
    async def session(self) -> AsyncIterator[SimulatedSession]:
        await self._wire.call("connect", lambda: None)
        session = SimulatedSession(self._records, self._wire)
        self._wire.opened(session)
        try:
            yield session
        except TimeoutError as error:
            raise DatabaseUnavailable(cause="no answer in time") from error
        finally:
            session.end()

    # The log. ------------------------------------------------------------------------------------

    async def append(self, columns: Sequence[Sequence[Any]]) -> Row:
        return await self._wire.call("append", partial(self._records.append, columns))

    async def places(self, event_ids: Sequence[UUID]) -> Sequence[Sequence[Any]]:
        return await self._wire.call("places", partial(self._records.places, event_ids))

    async def head(self) -> Row:
        return await self._wire.call("head", self._records.head)

    async def read(
        self, *, after: int, limit: int, stream: str | None = None
    ) -> Sequence[StoredEvent]:
        return await self._wire.call("read", partial(self._records.read, after, limit, stream))

    async def links(self, *, after: int, until: int, limit: int) -> Sequence[Any]:
        return await self._wire.call("links", partial(self._records.links, after, until, limit))

    async def newest(self, stream: str) -> Row:
        return await self._wire.call("newest", partial(self._records.newest, stream))

    async def streams_with(self, streams: Sequence[str], *, type: str | None = None) -> set[str]:  # noqa: A002
        work = partial(self._records.streams_with, streams, type)
        return await self._wire.call("streams_with", work)

    # Leases. -------------------------------------------------------------------------------------

    async def leases(self, mpack_ids: Sequence[str]) -> tuple[Mapping[str, Lease], datetime]:
        return await self._wire.call("leases", partial(self._records.leases, mpack_ids))

    async def active(
        self, *, before: datetime, after: str, limit: int
    ) -> Sequence[tuple[str, str]]:
        return await self._wire.call("active", partial(self._records.active, before, after, limit))

    async def attempts(self, mpack_id: str) -> int:
        return await self._wire.call("attempts", partial(self._records.attempts, mpack_id))

    async def forget_attempts(self, mpack_id: str) -> None:
        work = partial(self._records.forget_attempts, mpack_id)
        await self._wire.call("forget_attempts", work)

    # Claims. -------------------------------------------------------------------------------------

    async def claim(
        self, count: int, name: str, *, limit: timedelta, token: UUID, overdue: timedelta
    ) -> tuple[int, datetime]:
        work = partial(self._records.claim, count, name, limit=limit, token=token, overdue=overdue)
        return await self._wire.call("claim", work)

    async def claimed(self, name: str, token: UUID) -> Sequence[Claimed]:
        return await self._wire.call("claimed", partial(self._records.claimed, name, token))

    async def give_back(
        self, mpack_ids: Sequence[str], token: UUID, *, pause_seconds: float
    ) -> None:
        work = partial(self._records.give_back, mpack_ids, token, pause_seconds)
        await self._wire.call("give_back", work)

    async def count_failures(self, failures: Sequence[FailedAttempt], token: UUID) -> None:
        work = partial(self._records.count_failures, failures, token)
        await self._wire.call("count_failures", work)

    async def release(self, names: Sequence[str], tokens: Sequence[UUID]) -> None:
        await self._wire.call("release", partial(self._records.release, names, tokens))

    async def due(self, count: int | None, *, overdue: timedelta, named: int) -> DueNow:
        return await self._wire.call("due", partial(self._records.due_now, count, overdue, named))

    async def look_ahead(self) -> Look:
        return await self._wire.call("look_ahead", self._records.look_ahead)

    async def free_dead_claims(self) -> int:
        return await self._wire.call("free_dead_claims", self._records.free_dead_claims)
