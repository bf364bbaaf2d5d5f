"""Whose bucket is this? Nothing is deleted from a store that another log has marked as its own.

`transient/.owner` holds the log's id, and the newest published position and hash of its head. A
database that is empty or foreign (a staging clone with a log of its own, a wrong setting), or one
that has lost its newest events, finds a mark that contradicts it: it serves, and reaping is paused
until a human has looked.

A store that cannot list is not reconciled and not marked.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import asyncpg
import structlog

from leases.database import Database
from leases.errors import BlobMissing
from leases.log import EventLog
from leases.model import PREFIX
from leases.ports import BlobStore, ListsBlobs

OWNER_KEY = f"{PREFIX}.owner"

_log = structlog.get_logger(__name__)


class Ownership(StrEnum):
    """Whether this log may delete from this store."""

    UNKNOWN = "unknown"
    CONFIRMED = "confirmed"
    PAUSED = "paused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What `transient/.owner` says."""

    log_id: str
    position: int
    hash: str

    def dump(self) -> bytes:
        """The stored form."""
        told = {"log_id": self.log_id, "position": self.position, "hash": self.hash}
        return json.dumps(told, sort_keys=True).encode()

    @classmethod
    def load(cls, raw: bytes) -> Mark | None:
        """The mark of a stored form; None where it is not one."""
        try:
            told = json.loads(raw)
            return cls(
                log_id=str(told["log_id"]), position=int(told["position"]), hash=str(told["hash"])
            )
        except (ValueError, KeyError, TypeError):
            return None


class Owner:
    """Reads and writes the mark, and remembers what it found."""

    def __init__(self, *, database: Database, log: EventLog, store: BlobStore, log_id: str) -> None:
        self._database = database
        self._event_log = log
        self._store = store
        self._log_id = log_id
        self._checking = asyncio.Lock()
        self.state = Ownership.UNKNOWN
        self.reason = "the store's mark has not been read yet"

    def may_reap(self) -> bool:
        """Whether deletions are allowed."""
        return self.state is Ownership.CONFIRMED

    async def check(self) -> Ownership:
        """Compare the mark with the log, and publish the log's head when it is ours.

        Errors: the store's and the database's; the last finding then stays.
        """
        # One at a time: of two, the one that read first could speak last.
        async with self._checking:
            return await self._check()

    async def _check(self) -> Ownership:
        # The mark first: another replica may move both on in between, and a head that was read
        # before the mark would look like a log that lost its tail.
        mark = await self._read() if isinstance(self._store, ListsBlobs) else None
        head = await self._event_log.head()
        problem = await self._problem(mark, head) if isinstance(self._store, ListsBlobs) else None
        state = Ownership.PAUSED if problem else Ownership.CONFIRMED
        if problem and problem != self.reason:
            _log.error("reaping_paused", reason=problem)
        self.state, self.reason = state, problem or ""
        if state is Ownership.CONFIRMED and isinstance(self._store, ListsBlobs):
            await self._publish(head)
        return self.state

    async def _problem(self, mark: Mark | None, head: asyncpg.Record) -> str | None:
        if mark is None:
            return await self._strangers()
        if mark.log_id != self._log_id:
            return f"the store belongs to the log {mark.log_id}, this is {self._log_id}"
        if mark.position > head["position"]:
            return (
                f"the log ends at {head['position']}, but {mark.position} was published:"
                " its newest events are lost"
            )
        if mark.position and await self._hash_at(mark.position) != mark.hash:
            return f"the log's event {mark.position} is not the one that was published"
        return None

    async def _read(self) -> Mark | None:
        try:
            raw = await self._store.get(OWNER_KEY)
        except BlobMissing:
            return None
        return Mark.load(raw) or Mark(log_id="(unreadable)", position=0, hash="")

    async def _strangers(self) -> str | None:
        """No mark: the first start, or a lifecycle rule took it. Blobs of others forbid both."""
        assert isinstance(self._store, ListsBlobs)
        own = f"{PREFIX}{self._log_id}/"
        async for blob in self._store.list(PREFIX):
            if blob.key != OWNER_KEY and not blob.key.startswith(own):
                return f"the store has no mark and holds blobs of others, such as {blob.key}"
        return None

    async def _hash_at(self, position: int) -> str | None:
        row: Any = await self._database.fetchrow(
            "SELECT hash FROM events WHERE position = $1", position
        )
        return row["hash"].hex() if row else None

    async def _publish(self, head: asyncpg.Record) -> None:
        mark = Mark(log_id=self._log_id, position=head["position"], hash=head["hash"].hex())
        if mark != await self._read():
            await self._store.put(OWNER_KEY, mark.dump())
            _log.info("log_head_published", position=mark.position, hash=mark.hash)
