"""Take one object's bytes out of the store, for good: a secret that was pushed, a court's order.

    look      who holds it, and in which segments it lies
    rewrite   each such segment is copied without it, under a new id; not yet named by anything
    remove    in one transaction: the index moves to the copies, the old segments are condemned,
              the object's rows go, `object.purged` last
    delete    the old segments' blobs, then the open leases of the repos that held it

A crash leaves a pending copy (before the transaction) or condemned segments (behind it); `gc`
removes both, and running the purge again does the rest. Leases go last: what a build could still
read, it had reserved by then.

Commits that name the object stay. A fetch that needs it is refused, until the history is pushed
without it or the object is pushed again: nothing forbids that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.id_prefix import CANDIDATES_MAX, only_one
from gateway.packs.garbage import Garbage
from gateway.packs.garbage_rows import Kind
from gateway.packs.segments import segment_key
from gateway.packs.store_calls import store_call
from gateway.packs.transaction import transaction
from leases.database import Database
from leases.errors import InvalidRequest, NotFound, Unavailable
from leases.ids import new_mpack_id
from leases.lessor import Caller
from leases.log import EventLog, NewEvent
from leases.ports import BlobStore
from leases.revocation import Chosen, Revocation

_TRIES_MAX = 3

_STARTING_WITH = """
SELECT object_id FROM objects WHERE object_id >= $1 AND object_id < $1 || 'g'
 ORDER BY object_id LIMIT $2"""
_PLACES = """
SELECT i.mpack_id, i.byte_offset, i.byte_length, s.storage_key, s.codec, s.size_bytes,
       (SELECT count(*) FROM mpack_index AS o WHERE o.mpack_id = i.mpack_id) AS entries
  FROM mpack_index AS i LEFT JOIN segments AS s USING (mpack_id)
 WHERE i.entity_type = 'object' AND i.entity_id = $1
   AND s.state IS DISTINCT FROM 'pending' ORDER BY i.mpack_id"""
_HOLDERS = """
SELECT r.repo_id, COALESCE(p.owner || '/' || p.slug, r.repo_id) AS name FROM (
    SELECT repo_id FROM object_refs WHERE object_id = $1
     UNION
    SELECT c.repo_id FROM introductions AS i JOIN commit_refs AS c USING (commit_id)
     WHERE i.object_id = $1) AS r LEFT JOIN repos AS p USING (repo_id) ORDER BY 2"""
_PURGED = """
SELECT DISTINCT ON (stream) data FROM events
 WHERE stream >= 'object/' || $1 AND stream < 'object/' || $1 || 'g' AND type = 'object.purged'
 ORDER BY stream, version DESC LIMIT $2"""
_PENDING = "INSERT INTO segments (mpack_id, storage_key, state) VALUES ($1, $2, 'pending')"

_LOCK = text("""
SELECT o.object_id FROM objects AS o
 WHERE o.object_id = :object_id
    OR o.object_id IN (SELECT entity_id FROM mpack_index
                        WHERE entity_type = 'object' AND mpack_id = ANY(CAST(:old AS text[])))
 ORDER BY o.object_id FOR UPDATE""")
_STILL = text("""
SELECT mpack_id FROM mpack_index WHERE entity_type = 'object' AND entity_id = :object_id
 ORDER BY mpack_id""")
_MOVE = text("""
INSERT INTO mpack_index (entity_type, entity_id, mpack_id, byte_offset, byte_length)
SELECT entity_type, entity_id, :new,
       CASE WHEN byte_offset > :cut THEN byte_offset - :length ELSE byte_offset END, byte_length
  FROM mpack_index WHERE mpack_id = :old AND entity_id <> :object_id""")
# Its change is also the touch by which a `gc` under way sees that these rows are in use.
_MOVE_OBJECTS = text("""
UPDATE objects SET storage_uri = :key WHERE object_id IN (
    SELECT entity_id FROM mpack_index WHERE entity_type = 'object' AND mpack_id = :new)""")
_LIVE = text("""
UPDATE segments SET state = 'live', size_bytes = :size_bytes, sha256 = :sha256
 WHERE mpack_id = :new AND codec <> 'condemned' RETURNING mpack_id""")
_CONDEMN = text("""
INSERT INTO segments (mpack_id, storage_key, state, codec)
SELECT old, 'segments/' || old, 'pending', 'condemned'
  FROM unnest(CAST(:old AS text[])) AS one (old)
ON CONFLICT (mpack_id) DO UPDATE SET state = 'pending', codec = 'condemned'""")
# Joined segments, and those being joined, may hold the object though nothing leads to it there.
_CONDEMN_JOINED = text("""
UPDATE segments SET state = 'pending', codec = 'condemned' WHERE codec IN ('joining', 'joined')""")
_REMOVE = (
    text("DELETE FROM mpack_index WHERE mpack_id = ANY(CAST(:old AS text[]))"),
    text("DELETE FROM object_refs WHERE object_id = :object_id"),
    text("DELETE FROM introductions WHERE object_id = :object_id"),
    text("DELETE FROM objects WHERE object_id = :object_id"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A repo that holds the object."""

    repo_id: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """Where an object lies, and who holds it."""

    object_id: str
    holders: Sequence[Holder]
    places: Sequence[_Place]


@dataclass(frozen=True, slots=True, kw_only=True)
class Purged:
    """What a purge did; with a dry run, what it would do.

    `blobs_failed` counts the condemned segments that the store did not delete: purge once more.
    """

    object_id: str
    repos: list[str]
    segments_rewritten: int
    segments_deleted: int
    blobs_failed: int
    leases_revoked: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    mpack_id: str
    byte_offset: int | None
    byte_length: int | None
    storage_key: str | None
    codec: str | None
    size_bytes: int | None
    entries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Copy:
    """A segment without the object, stored and pending."""

    old: str
    new: str
    cut: int
    length: int
    size_bytes: int
    sha256: str


class _Moved(Exception):
    """A push or another purge changed what was looked at: look again."""


class Purge:
    """Looks, and purges."""

    def __init__(
        self, database: Database, log: EventLog, store: BlobStore, *, revocation: Revocation
    ) -> None:
        self._database = database
        self._event_log = log
        self._store = store
        self._revocation = revocation
        self._garbage = Garbage(database, log, store)

    async def look(self, prefix: str) -> Holding:
        """Where the one object lies whose id begins with this, and who holds it.

        Errors: NotFound; InvalidRequest for more than one.
        """
        found = await self._database.fetch(_STARTING_WITH, prefix, CANDIDATES_MAX)
        object_id = _only([row["object_id"] for row in found], prefix)
        holders = await self._database.fetch(_HOLDERS, object_id)
        places = await self._database.fetch(_PLACES, object_id)
        return Holding(
            object_id=object_id,
            holders=[Holder(**dict(row)) for row in holders],
            places=[_Place(**dict(row)) for row in places],
        )

    async def plan(self, prefix: str) -> Purged:
        """What `purge` would do. Errors: as its."""
        holding = await self.look(prefix)
        _check_rewritable(holding)
        found = [await self._revocation.look(one) for one in _leases_of(holding)]
        return _purged(holding, blobs_failed=0, leases=sum(one.leases for one in found))

    async def purge(self, prefix: str, *, reason: str, caller: Caller) -> Purged:
        """Do it.

        Effects: writes and deletes segments, deletes rows, revokes leases; `object.purged`.
        Errors:  NotFound; InvalidRequest when it lies in a blob of other code that holds more;
                 Unavailable.
        """
        for _ in range(_TRIES_MAX):
            holding = await self._found(prefix)
            _check_rewritable(holding)
            copies = [await self._rewrite(place) for place in holding.places if place.entries > 1]
            try:
                if holding.places:
                    await self._remove(holding, copies, reason=reason, caller=caller)
                break
            except _Moved:
                continue  # The copies are pending segments, which `gc` removes in time.
        else:
            raise Unavailable("This object is being pushed again and again; try again shortly.")
        failed = 0
        async for removed in self._garbage.delete_condemned():
            failed += removed.count if removed.kind is Kind.FAILED else 0
        revoked = await self._revoke(holding, reason=reason, caller=caller)
        return _purged(holding, blobs_failed=failed, leases=revoked)

    async def _found(self, prefix: str) -> Holding:
        """As `look`; an object that is gone already as its last purge found it."""
        try:
            return await self.look(prefix)
        except NotFound:
            rows = await self._database.fetch(_PURGED, prefix, CANDIDATES_MAX)
            purged = [json.loads(row["data"]) for row in rows]
            object_id = _only([told["object_id"] for told in purged], prefix)
        holders = [Holder(repo_id=repo_id, name=repo_id) for repo_id in purged[0]["repos"]]
        return Holding(object_id=object_id, holders=holders, places=[])

    async def _rewrite(self, place: _Place) -> _Copy:
        assert place.storage_key is not None
        assert place.byte_offset is not None
        assert place.byte_length is not None
        new = new_mpack_id()
        with store_call("get"):
            blob = await self._store.get(place.storage_key)
        blob = blob[: place.byte_offset] + blob[place.byte_offset + place.byte_length :]
        await self._database.execute(_PENDING, new, segment_key(new))
        with store_call("put"):
            await self._store.put(segment_key(new), blob)
        return _Copy(
            old=place.mpack_id,
            new=new,
            cut=place.byte_offset,
            length=place.byte_length,
            size_bytes=len(blob),
            sha256=hashlib.sha256(blob).hexdigest(),
        )

    async def _remove(
        self, holding: Holding, copies: Sequence[_Copy], *, reason: str, caller: Caller
    ) -> None:
        old = [place.mpack_id for place in holding.places]
        values = {"object_id": holding.object_id, "old": old}
        fact = NewEvent(
            stream=f"object/{holding.object_id}",
            type="object.purged",
            data={
                "object_id": holding.object_id,
                "reason": reason,
                "repos": [one.repo_id for one in holding.holders],
                "segments": [*old],
            },
            expected_version=None,
            actor=caller.actor,
        )
        async with transaction(self._database) as connection:
            await connection.execute(_LOCK, values)
            if list((await connection.execute(_STILL, values)).scalars()) != old:
                raise _Moved
            for copy in copies:
                await self._take_copy(connection, copy, holding.object_id)
            await connection.execute(_CONDEMN, values)
            await connection.execute(_CONDEMN_JOINED)
            for statement in _REMOVE:
                await connection.execute(statement, values)
            await self._event_log.append_in(connection, [fact])

    async def _take_copy(self, connection: AsyncConnection, copy: _Copy, object_id: str) -> None:
        values = {
            "new": copy.new, "old": copy.old, "cut": copy.cut, "length": copy.length,
            "object_id": object_id, "key": segment_key(copy.new),
            "size_bytes": copy.size_bytes, "sha256": copy.sha256,
        }  # fmt: skip
        await connection.execute(_MOVE, values)
        await connection.execute(_MOVE_OBJECTS, values)
        if (await connection.execute(_LIVE, values)).one_or_none() is None:
            raise _Moved

    async def _revoke(self, holding: Holding, *, reason: str, caller: Caller) -> int:
        revoked = 0
        for chosen in _leases_of(holding):
            work = self._revocation.batches(
                chosen, reason=f"object purged: {reason}", caller=caller
            )
            revoked += sum([done.revoked async for done in work])
        return revoked


def _only(found: Sequence[str], prefix: str) -> str:
    missing = NotFound("No such object.", object_id=prefix)
    return only_one(found, prefix, missing=missing)


def _leases_of(holding: Holding) -> list[Chosen]:
    """Whichever packs may hold the object."""
    return [Chosen(repo_id=one.repo_id) for one in holding.holders]


def _check_rewritable(holding: Holding) -> None:
    """Errors: InvalidRequest."""
    for place in holding.places:
        own = place.codec == "raw" and place.byte_offset is not None
        if place.entries > 1 and not (own and place.byte_length is not None):
            raise InvalidRequest(
                "This object lies in a blob that other code wrote and that holds more.",
                storage_key=place.storage_key or segment_key(place.mpack_id),
            )


def _purged(holding: Holding, *, blobs_failed: int, leases: int) -> Purged:
    shared = sum(place.entries > 1 for place in holding.places)
    return Purged(
        object_id=holding.object_id,
        repos=[one.name for one in holding.holders],
        segments_rewritten=shared,
        segments_deleted=len(holding.places),
        blobs_failed=blobs_failed,
        leases_revoked=leases,
    )
