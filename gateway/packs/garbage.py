"""What no repo holds any more: found, removed from the tables, then from the store.

Held is what a repo's membership names, and what follows from it: an object by `object_refs`, by an
introduction of a commit that a repo holds, or by a manifest that other code wrote; a snapshot by
`snapshot_refs`, by a commit that a repo holds, or as the base of a held one. Deleted repos hold
nothing. A segment goes when none of its objects is left; one with a single held object stays whole.

How a push and this can run at the same time:

    find     unheld rows, each with the version of its row (`xmin`)
    remove   in small transactions: lock those rows, skipping what a push has locked; delete those
             whose version is still the one that was found, and what hangs on them; the event last

A push that takes over what stands already changes the row's version in the transaction that makes
it a member ("touches" it). If that commits first, the version differs and nothing is deleted. If
the deletion commits first, the push finds the row gone and brings the content itself. There is no
third case, because both lock the row. So no lock is held for longer than a batch, and a push waits
for nobody.

What if we die …
- between two transactions: the next run finds the rest;
- after a segment was condemned, before its blob is deleted: it stands in `segments`, pending and
  condemned, until a run has deleted the blob. A push never makes it live again.

Other code that writes these tables without touching is not safe beside this.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.packs import garbage_rows as rows
from gateway.packs.garbage_rows import Kind
from gateway.packs.manifest_rows import iterate_manifests
from gateway.packs.repos import repo_stream
from gateway.packs.transaction import reading, transaction, tried_again
from leases.codec import JSON
from leases.database import Database
from leases.lessor import Caller
from leases.log import EventLog, NewEvent
from leases.ports import BlobStore, DeleteOutcome, DeletesMany
from leases.steps import Step, Steps, no_steps

STREAM = "content/gc"
# Ids in one transaction and one event; about 70 kB of event, a few milliseconds of locks.
BATCH = 1000
# Found at a time; ten megabytes of ids.
_FOUND_MAX = 100_000
_MEMBERS_PER_BATCH = 10_000
# An upload that takes longer than a day is none any more.
UNFINISHED_AFTER = timedelta(days=1)
# A database restored from a backup of last week leads to the segments of last week.
KEEP_JOINED = timedelta(days=7)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """Some things of one kind that were removed, or with a dry run would be."""

    kind: Kind
    count: int
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """An unheld row, and the version in which it was found."""

    entity_id: str
    row_version: str


class Garbage:
    """Finds and removes. Every step may be run again, and beside itself."""

    def __init__(
        self, database: Database, log: EventLog, store: BlobStore, *, steps: Steps = no_steps
    ) -> None:
        self._database = database
        self._event_log = log
        self._store = store
        self._step = steps

    async def look(
        self,
        *,
        unfinished_after: timedelta = UNFINISHED_AFTER,
        keep_joined: timedelta = KEEP_JOINED,
    ) -> AsyncIterator[Removed]:
        """What `collect` would remove now."""
        spared = await self.spared()
        for kind, statement in rows.COUNTS.items():
            async with reading(self._database) as reader:
                values = {"spared": spared, "age": unfinished_after, "kept": keep_joined}
                count, size_bytes = (await reader.execute(statement, values)).one()
            if count:
                yield Removed(kind=kind, count=count, size_bytes=size_bytes)

    async def collect(
        self,
        *,
        caller: Caller,
        unfinished_after: timedelta = UNFINISHED_AFTER,
        keep_joined: timedelta = KEEP_JOINED,
    ) -> AsyncIterator[Removed]:
        """Remove it all; tells after every batch. To end it early, iterate no further.

        Effects: deletes rows and segments, appends events.
        Errors:  DatabaseUnavailable. What the store refuses to delete waits for the next run.
        """
        async for removed in self._deleted_repos(caller):
            yield removed
        spared = await self.spared()
        for kind in (Kind.COMMIT, Kind.SNAPSHOT, Kind.OBJECT):
            # A snapshot goes before its base does, so one pass may uncover the next one's.
            while found := await self.find(kind, spared=spared):
                count = 0
                for start in range(0, len(found), BATCH):
                    part = await self.remove(kind, found[start : start + BATCH], caller=caller)
                    self._step(Step.CONTENT_REMOVED)
                    count += part
                    yield Removed(kind=kind, count=part)
                if not count:
                    break  # Pushes hold or have touched them all.
        ages = {"age": unfinished_after, "kept": keep_joined}
        while condemned := await self._condemn(ages, caller=caller):
            self._step(Step.SEGMENTS_CONDEMNED)
            yield condemned
        async for removed in self.delete_condemned():
            yield removed

    # Rows. ---------------------------------------------------------------------------------------

    async def find(self, kind: Kind, *, spared: Collection[str] = ()) -> list[Found]:
        """Unheld rows of a kind: those that can go first."""
        async with reading(self._database) as reader:
            values = {"limit": _FOUND_MAX, "spared": list(spared)}
            result = await reader.execute(rows.FIND[kind], values)
            return [Found(row.entity_id, row.row_version) for row in result]

    async def remove(self, kind: Kind, found: Sequence[Found], *, caller: Caller) -> int:
        """Remove those that nobody has touched since; answers how many."""
        versions = {one.entity_id: one.row_version for one in found}

        async def work() -> int:
            async with transaction(self._database) as connection:
                asked = {"ids": sorted(versions)}
                locked = (await connection.execute(rows.LOCK[kind], asked)).scalars().all()
                if not locked:
                    return 0
                still = {"ids": locked, "versions": [versions[one] for one in locked]}
                gone = (await connection.execute(rows.DELETE[kind], still)).scalars().all()
                if not gone:
                    return 0
                for statement in rows.DELETE_WITH[kind]:
                    await connection.execute(statement, {"ids": gone})
                await self._tell(connection, kind, gone, caller=caller)
                return len(gone)

        return await tried_again(work)

    async def _tell(
        self, connection: AsyncConnection, kind: Kind, ids: Sequence[str], *, caller: Caller
    ) -> None:
        data: dict[str, JSON] = {"kind": kind.value, "ids": [*sorted(ids)]}
        fact = NewEvent(
            stream=STREAM,
            type="content.removed",
            data=data,
            expected_version=None,
            actor=caller.actor,
        )
        await self._event_log.append_in(connection, [fact])

    async def spared(self) -> list[str]:
        """Objects that only manifests of other code's commits name: it writes no membership."""
        spared: set[str] = set()
        async with reading(self._database) as reader:
            foreign = (await reader.execute(rows.FOREIGN_SNAPSHOTS)).scalars().all()
            async for _snapshot_id, manifest in iterate_manifests(reader, list(foreign)):
                spared.update(manifest.values())
        return sorted(spared)

    async def _deleted_repos(self, caller: Caller) -> AsyncIterator[Removed]:
        """Take a deleted repo's membership away, and then its row: its name is free again."""
        for row in await self._database.fetch(rows.DELETED_REPOS):
            repo_id = row["repo_id"]
            for statement in rows.MEMBERS_BATCH:
                while await self._database.execute(statement, repo_id, _MEMBERS_PER_BATCH):
                    pass
            await tried_again(partial(self._remove_repo, repo_id, caller))
            self._step(Step.CONTENT_REMOVED)
            yield Removed(kind=Kind.REPO, count=1)

    async def _remove_repo(self, repo_id: str, caller: Caller) -> None:
        async with transaction(self._database) as connection:
            asked = {"repo_id": repo_id}
            # A push to it that began before the deletion has ended now, or will find no repo.
            row = (await connection.execute(rows.LOCK_REPO, asked)).one_or_none()
            if row is None:
                return
            for statement in (*rows.MEMBERS_REST, rows.DELETE_REPO):
                await connection.execute(statement, asked)
            fact = NewEvent(
                stream=repo_stream(repo_id),
                type="repo.removed",
                data={"owner": row.owner, "slug": row.slug},
                expected_version=None,
                actor=caller.actor,
            )
            await self._event_log.append_in(connection, [fact])

    # Blobs. --------------------------------------------------------------------------------------

    async def _condemn(self, ages: dict[str, timedelta], *, caller: Caller) -> Removed | None:
        """Say of empty and of unfinished segments that they go, before anything is deleted."""

        async def work() -> Removed | None:
            async with transaction(self._database) as connection:
                values = {"limit": BATCH, **ages}
                locked = (await connection.execute(rows.LOCK_SEGMENTS, values)).scalars().all()
                gone = (await connection.execute(rows.CONDEMN, {"ids": locked})).all()
                if not gone:
                    return None
                ids = [row.mpack_id for row in gone]
                await self._tell(connection, Kind.SEGMENT, ids, caller=caller)
                size = sum(row.size_bytes or 0 for row in gone)
                return Removed(kind=Kind.SEGMENT, count=len(gone), size_bytes=size)

        return await tried_again(work)

    async def delete_condemned(self) -> AsyncIterator[Removed]:
        """Delete the blobs of condemned segments, and then their rows."""
        after = ""
        while batch := await self._database.fetch(rows.CONDEMNED, after, BATCH):
            after = batch[-1]["mpack_id"]
            keys = {row["storage_key"]: row["mpack_id"] for row in batch}
            failed = await self._delete_blobs(list(keys))
            self._step(Step.SEGMENTS_DELETED)
            gone = [mpack_id for key, mpack_id in keys.items() if key not in failed]
            await self._database.execute(rows.FORGET_CONDEMNED, gone)
            yield Removed(kind=Kind.BLOB, count=len(gone))
            if failed:
                yield Removed(kind=Kind.FAILED, count=len(failed))

    async def _delete_blobs(self, keys: Sequence[str]) -> set[str]:
        """Delete them; answers what could not be."""
        for key in keys:
            assert key.startswith("segments/"), key
        try:
            if isinstance(self._store, DeletesMany):
                answers = await self._store.delete_many(keys)
                return {key for key in keys if not isinstance(answers.get(key), DeleteOutcome)}
            for key in keys:
                await self._store.delete(key)
        except Exception as error:  # noqa: BLE001  whatever a host's store raises
            _log.warning("segments_not_deleted", error=type(error).__name__)
            return set(keys)  # Some may be gone; deleting them again finds nothing.
        return set()
