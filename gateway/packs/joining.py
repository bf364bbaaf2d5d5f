"""Small segments become large ones, so that a thousand pushes are not read from a thousand blobs.

    find     live segments below a size, of one repo each, in the order of their pushes
    copy     every entry is verified against its object's id and written, by path, into one new
             segment: its row first (pending, codec `joining`), then its blob
    move     in one transaction: the index leads to the new segment, which is live from then on; the
             old ones are pending (codec `joined`) and led to by nothing; `segments.joined` last
    leave    the old blobs stay for a week (`gc --keep-joined`): a fetch that was planned before the
             move reads them, and a database that is restored from a backup leads to them. Then
             `gc` condemns and deletes them as it does what is pending for too long.

A push writes only segments of its own, which are pending until it is through with them, so nothing
here touches what it is writing. Objects' rows are locked in the order of their ids, as everybody
does, so that whoever takes some of them over, removes or purges them comes before the move or after
it. If anything is not as it was when it was copied, nothing moves, and the copy is deleted.

What if we die …
- before the move: a pending segment that nothing leads to; the next run copies anew;
- behind it: done; the old segments wait to be removed.

A purge must leave no copy of its object behind: it condemns all that is `joining` or `joined`, and
so ends the time for which old blobs are kept. A segment that large is left alone from then on, so
each byte is copied a few times at most: the base of that logarithm is `join_segments_min`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import structlog
from sqlalchemy.sql.elements import TextClause

from gateway.packs import joining_rows as rows
from gateway.packs.garbage import STREAM, Removed
from gateway.packs.garbage_rows import Kind
from gateway.packs.policy import PackPolicy
from gateway.packs.segments import segment_key
from gateway.packs.splice import check_entry
from gateway.packs.store_calls import store_call, stored_range
from gateway.packs.transaction import reading, transaction, tried_again
from gateway.together import together
from gateway.wire.ids import object_id_of
from leases.database import Database
from leases.errors import Corrupt, Failure, NotFound
from leases.ids import new_mpack_id
from leases.lessor import Caller
from leases.log import EventLog, NewEvent
from leases.ports import BlobStore
from leases.steps import Step, Steps, no_steps

# In one transaction and one event: 35 kB of ids, and half a second of locks at most.
_SEGMENTS_MAX = 1000
_ENTRIES_MAX = 5000
# Found at a time; a megabyte of ids.
_FOUND_MAX = 20_000
_READS_PARALLEL = 8

_log = structlog.get_logger(__name__)


class SmallSegment(NamedTuple):
    """A live segment that is worth joining to others of its repo."""

    mpack_id: str
    storage_key: str
    size_bytes: int
    entries: int
    repo_id: str


class Entry(NamedTuple):
    """Where an object's entry lies, as the index says."""

    object_id: str
    mpack_id: str
    offset: int
    length: int
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Copy:
    """The new segment, stored and pending; `lengths` are those of its entries, in order."""

    mpack_id: str
    entries: Sequence[Entry]
    size_bytes: int
    sha256: str


class _Moved(Exception):
    """Something has changed since it was copied."""


def batches(
    found: Iterable[SmallSegment], *, bytes_max: int, segments_min: int
) -> Iterator[list[SmallSegment]]:
    """Neighbours of one repo, as many as make one segment; what is too few is left for later."""
    batch: list[SmallSegment] = []
    size_bytes = entries = 0
    for one in found:
        joins = (
            batch
            and one.repo_id == batch[0].repo_id
            and len(batch) < _SEGMENTS_MAX
            and size_bytes + one.size_bytes <= bytes_max
            and entries + one.entries <= _ENTRIES_MAX
        )
        if batch and not joins:
            if len(batch) >= segments_min:
                yield batch
            batch, size_bytes, entries = [], 0, 0
        batch.append(one)
        size_bytes += one.size_bytes
        entries += one.entries
    if len(batch) >= segments_min:
        yield batch


class Joining:
    """Joins small segments. May run beside pushes, fetches, `gc` and itself."""

    def __init__(
        self,
        database: Database,
        log: EventLog,
        store: BlobStore,
        *,
        policy: PackPolicy,
        steps: Steps = no_steps,
    ) -> None:
        self._database = database
        self._event_log = log
        self._store = store
        self._policy = policy
        self._step = steps

    async def look(self, *, spared: Sequence[str] = ()) -> AsyncIterator[Removed]:
        """What `join` would do behind a `gc` that spares these objects."""
        for batch in await self._batches(rows.FIND_AFTER_GC, {"spared": list(spared)}):
            size = sum(one.size_bytes for one in batch)
            yield Removed(kind=Kind.JOINED, count=len(batch), size_bytes=size)

    async def join(self, *, caller: Caller) -> AsyncIterator[Removed]:
        """Join what is there now, batch by batch; to end it early, iterate no further.

        Effects: writes segments, moves index rows, appends events. Deletes no segment but its own
                 copies that are of no use.
        Errors:  DatabaseUnavailable, StoreUnavailable. A segment that is gone or corrupt is told
                 (`FAILED`) and stays as it is.
        """
        for batch in await self._batches(rows.FIND, {}):
            bad: set[str] = set()
            if await self._join(batch, bad, caller):
                yield Removed(
                    kind=Kind.JOINED,
                    count=sum(one.mpack_id not in bad for one in batch),
                    size_bytes=sum(one.size_bytes for one in batch),
                )
            if bad:
                yield Removed(kind=Kind.FAILED, count=len(bad))

    async def _batches(
        self, statement: TextClause, more: dict[str, object]
    ) -> list[list[SmallSegment]]:
        policy = self._policy
        async with reading(self._database) as reader:
            values = {"small": policy.join_segment_bytes_max, "limit": _FOUND_MAX, **more}
            result = (await reader.execute(statement, values)).all()
        found = [SmallSegment(*row) for row in result]
        minimum = policy.join_segments_min
        return list(batches(found, bytes_max=policy.join_bytes, segments_min=minimum))

    async def _join(self, batch: Sequence[SmallSegment], bad: set[str], caller: Caller) -> bool:
        """One batch; whether it moved. What could not be read is `bad`, and stays as it is."""
        contents = await self._read(batch, bad)
        if len(contents) < 2:
            return False
        copy = await self._copied(contents)
        old = sorted({entry.mpack_id for entry in copy.entries} | contents.keys())
        try:
            await tried_again(lambda: self._move(copy, old, caller))
        except _Moved:
            await self._drop(copy)
            return False
        self._step(Step.SEGMENTS_JOINED)
        _log.info("segments_joined", segment_id=copy.mpack_id, segments=len(old))
        return True

    # Copy. ---------------------------------------------------------------------------------------

    async def _read(
        self, batch: Sequence[SmallSegment], bad: set[str]
    ) -> dict[str, list[tuple[Entry, bytes]]]:
        """The verified entries of each segment; one that is not what it should be is left out."""
        ids = [one.mpack_id for one in batch]
        entries: dict[str, list[Entry]] = {one: [] for one in ids}
        async with reading(self._database) as reader:
            for row in await reader.execute(rows.ENTRIES, {"ids": ids}):
                entries[row.mpack_id].append(Entry(*row))
        found: dict[str, list[tuple[Entry, bytes]]] = {}
        waiting = iter(batch)

        async def work() -> None:
            for one in waiting:
                try:
                    blob = await stored_range(self._store, one.storage_key, None, None)
                    found[one.mpack_id] = await asyncio.to_thread(
                        _verified, blob, entries[one.mpack_id]
                    )
                except (Corrupt, NotFound) as failure:
                    bad.add(one.mpack_id)
                    _log.error("segment_not_joined", segment_id=one.mpack_id, error=failure.code)

        async with together() as tasks:
            for _ in range(_READS_PARALLEL):
                tasks.create_task(work())
        return found

    async def _copied(self, contents: dict[str, list[tuple[Entry, bytes]]]) -> _Copy:
        """Store them as one segment, by path: as a pack wants them. Each object once."""
        each = {entry.object_id: (entry, data) for one in contents.values() for entry, data in one}
        order = sorted(each.values(), key=lambda pair: (pair[0].path, pair[0].mpack_id))
        blob = b"".join(data for _entry, data in order)
        mpack_id = new_mpack_id()
        await self._database.execute(rows.PENDING, mpack_id, segment_key(mpack_id))
        self._step(Step.JOIN_PENDING)
        with store_call("put"):
            await self._store.put(segment_key(mpack_id), blob)
        self._step(Step.JOIN_PUT)
        return _Copy(
            mpack_id=mpack_id,
            entries=[entry for entry, _data in order],
            size_bytes=len(blob),
            sha256=(await asyncio.to_thread(hashlib.sha256, blob)).hexdigest(),
        )

    # Move. ---------------------------------------------------------------------------------------

    async def _move(self, copy: _Copy, old: Sequence[str], caller: Caller) -> None:
        """The index leads to the copy.

        Errors: _Moved when a segment or an object is not any more what was copied.
        """
        lengths = [entry.length for entry in copy.entries]
        ids = [entry.object_id for entry in copy.entries]
        values = {
            "new": copy.mpack_id,
            "old": old,
            "ids": ids,
            "offsets": list(accumulate(lengths[:-1], initial=0)),
            "lengths": lengths,
            "key": segment_key(copy.mpack_id),
            "size_bytes": copy.size_bytes,
            "sha256": copy.sha256,
        }
        fact = NewEvent(
            stream=STREAM,
            type="segments.joined",
            data={"into": copy.mpack_id, "segments": [*old]},
            expected_version=None,
            actor=caller.actor,
        )
        async with transaction(self._database) as connection:
            if (await connection.execute(rows.IS_LIVE, values)).scalar_one():
                return  # The answer of an earlier COMMIT was lost.
            await connection.execute(rows.LOCK_OBJECTS, values)
            locked = (await connection.execute(rows.LOCK_OLD, values)).scalars().all()
            gone = (await connection.execute(rows.UNINDEX, values)).scalars().all()
            if sorted(locked) != list(old) or set(gone) != set(ids):
                raise _Moved
            await connection.execute(rows.INDEX, values)
            await connection.execute(rows.MOVE_OBJECTS, values)
            await connection.execute(rows.RETIRE, values)
            if (await connection.execute(rows.LIVE, values)).one_or_none() is None:
                raise _Moved
            await self._event_log.append_in(connection, [fact])

    async def _drop(self, copy: _Copy) -> None:
        """Nothing leads to this copy, and nothing ever will: its row says so before it is gone."""
        key = segment_key(copy.mpack_id)
        await self._database.execute(rows.CONDEMN, copy.mpack_id, key)
        try:
            with store_call("delete"):
                await self._store.delete(key)
        except Failure as failure:
            _log.warning("segments_not_deleted", error=failure.code)  # The next `gc` does it.
            return
        await self._database.execute(rows.FORGET, copy.mpack_id)


def _verified(blob: bytes, entries: Sequence[Entry]) -> list[tuple[Entry, bytes]]:
    """Cut the entries out, and recompute the id of each.

    Errors: Corrupt.
    """
    found = []
    for entry in entries:
        data = blob[entry.offset : entry.offset + entry.length]
        try:
            start = check_entry(data, entry.object_id, entry.length)
        except ValueError as error:
            raise Corrupt(object_id=entry.object_id) from error
        if len(data) != entry.length or object_id_of(memoryview(data)[start:]) != entry.object_id:
            raise Corrupt(object_id=entry.object_id)
        found.append((entry, data))
    return found
