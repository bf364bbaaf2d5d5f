"""Whose bucket is this? Nothing is deleted from a store that another log has marked as its own.

`transient/.owner` holds the log's id, and the newest published position and hash of its head. A
database that is empty or foreign (a staging clone with a log of its own, a wrong setting), or one
that has lost its newest events, finds a mark that contradicts it: it serves, and reaping is paused
until a human has looked, and has adopted the store. An operator may pause reaping as well
(leases/pause.py); both end here, in `may_reap`.

A store that cannot list is not reconciled and not marked; a process that misses an event which it
appended itself pauses there as well.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from enum import StrEnum

import structlog

from leases.errors import BlobMissing
from leases.ledger import Row
from leases.lessor import Caller
from leases.log import EventLog
from leases.model import PREFIX
from leases.pause import Pauses
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

    def __init__(self, *, log: EventLog, store: BlobStore, log_id: str) -> None:
        self._event_log = log
        self._store = store
        self._log_id = log_id
        self._checking = asyncio.Lock()
        self.pauses = Pauses(log)
        self._pause_version: int | None = None
        self._doubts = 0
        self.state = Ownership.UNKNOWN
        self.reason = "the store's mark has not been read yet"

    def may_reap(self) -> bool:
        """Whether deletions are allowed."""
        return self.state is Ownership.CONFIRMED

    def doubt(self) -> None:
        """Allow no deletion until the next check: the session at the database was lost, and
        what answers in its place may be a standby that lacks the newest events.
        """
        self._doubts += 1
        if self.state is Ownership.CONFIRMED:
            self.state = Ownership.UNKNOWN
            self.reason = "the connection to the database was lost, and the mark not read since"

    async def check(self) -> Ownership:
        """Compare the mark with the log, and publish the log's head when it is ours.

        Errors: the store's and the database's; the last finding then stays.
        """
        # One at a time: of two, the one that read first could speak last.
        async with self._checking:
            return await self._check()

    async def obey(self) -> None:
        """Check anew if somebody has paused, resumed or adopted since the last check.

        Errors: those of `check`.
        """
        if (await self.pauses.look()).version != self._pause_version:
            await self.check()

    async def touch(self) -> None:
        """Put the mark once more, as it is, to see whether the store takes blobs.

        Only where the mark is ours; elsewhere it is read and no more.
        Errors: the store's.
        """
        async with self._checking:
            mark = await self._read()
            if self.may_reap() and mark is not None and mark.log_id == self._log_id:
                await self._store.put(OWNER_KEY, mark.dump())

    async def adopt(self, *, caller: Caller) -> Ownership:
        """Take the store over for this log, whatever its mark says, and let the replicas reap.

        The event stands before the mark: after a crash in between the store is as it was.
        Errors: the store's and the database's.
        """
        mark = await self._read() if isinstance(self._store, ListsBlobs) else None
        await self.pauses.resume(caller=caller, adopted_from=mark.log_id if mark else "(no mark)")
        if isinstance(self._store, ListsBlobs):
            async with self._checking:
                await self._publish(await self._event_log.head())
        return await self.check()

    async def _check(self) -> Ownership:
        doubts = self._doubts
        pause = await self.pauses.look()
        known = self._pause_version
        if known is not None and pause.version > known and pause.adopted:
            self._event_log.forget_confirmed()
        if pause.paused:  # Whatever the store says, and also while it says nothing.
            self._found(str(pause))
        else:
            await self._compare(doubts)
        self._pause_version = pause.version
        return self.state

    def _found(self, problem: str | None) -> None:
        if problem and problem != self.reason:
            _log.error("reaping_paused", reason=problem)
        elif self.state is Ownership.PAUSED and not problem:
            _log.info("reaping_resumed")
        self.state = Ownership.PAUSED if problem else Ownership.CONFIRMED
        self.reason = problem or ""

    async def _compare(self, doubts: int) -> None:
        # The mark first: another replica may move both on in between, and a head that was read
        # before the mark would look like a log that lost its tail.
        mark = await self.mark()
        head = await self._event_log.head()
        if mark is not None:
            problem = await self._problem(mark, head)
        else:
            problem = await self._strangers()
        problem = problem or await self._lost(mark)
        if not problem and doubts != self._doubts:
            return  # Of the server that was there before: another check is on its way.
        self._found(problem)
        if not problem and isinstance(self._store, ListsBlobs):
            await self._publish(head)

    async def contradiction(self) -> str | None:
        """What the store's mark says against this log; nothing is written for it, nor remembered.

        Errors: the store's and the database's.
        """
        mark = await self.mark()
        return await self._problem(mark, await self._event_log.head()) if mark else None

    async def _problem(self, mark: Mark, head: Row) -> str | None:
        if mark.log_id != self._log_id:
            return f"the store belongs to the log {mark.log_id}, this is {self._log_id}"
        if mark.position > head["position"]:
            return (
                f"the log ends at {head['position']}, but {mark.position} was published:"
                " its newest events are lost"
            )
        begin = await self._event_log.beginning()
        # What was archived since the mark was written is proven by the archive.
        if mark.position > begin.position and await self._hash_at(mark.position) != mark.hash:
            return f"the log's event {mark.position} is not the one that was published"
        return None

    async def _lost(self, mark: Mark | None) -> str | None:
        """What the mark cannot tell, because it is older than what was lost, or not there."""
        position = await self._event_log.lost()
        if position is None:
            return None
        if self.state is not Ownership.PAUSED and isinstance(self._store, ListsBlobs):
            # For the other replicas, and for this one's next start. The hash is no event's.
            told = Mark(log_id=self._log_id, position=position, hash="")
            if mark is None or position > mark.position:
                await self._store.put(OWNER_KEY, told.dump())
        return f"the log does not hold its event {position} any more: its newest events are lost"

    async def mark(self) -> Mark | None:
        """What the store says; None where it says nothing. Errors: the store's."""
        if not isinstance(self._store, ListsBlobs):
            return None
        return await self._read()

    async def _read(self) -> Mark | None:
        try:
            raw = await self._store.get(OWNER_KEY)
        except BlobMissing:
            return None
        return Mark.load(raw) or Mark(log_id="(unreadable)", position=0, hash="")

    async def _strangers(self) -> str | None:
        """No mark: the first start, or a lifecycle rule took it. Blobs of others forbid both."""
        if not isinstance(self._store, ListsBlobs):
            return None
        own = f"{PREFIX}{self._log_id}/"
        async for blob in self._store.list(PREFIX):
            if blob.key != OWNER_KEY and not blob.key.startswith(own):
                return f"the store has no mark and holds blobs of others, such as {blob.key}"
        return None

    async def _hash_at(self, position: int) -> str | None:
        known = await self._event_log.hash_at(position)
        return known.hex() if known else None

    async def _publish(self, head: Row) -> None:
        mark = Mark(log_id=self._log_id, position=head["position"], hash=head["hash"].hex())
        if mark != await self._read():
            await self._store.put(OWNER_KEY, mark.dump())
            _log.info("log_head_published", position=mark.position, hash=mark.hash)
