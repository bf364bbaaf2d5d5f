"""Pushed objects become segments: one blob, one row and a few statements for each chunk.

The segment's row (`pending`) stands before its blob, and the blob before the rows that name it, so
a crash leaves a pending segment that nothing points to, never an index row without bytes. Storing
a chunk again is safe: what an earlier try made known is skipped, and what it left pending is
garbage for `gc`.

`gc` may run at any time. It removes what it found unheld only if nobody has touched it since; so
whoever relies on an object that stands already touches its row, in the transaction that makes it
the repo's (gateway/packs/garbage.py tells the whole of it).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Protocol

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.errors import Incomplete
from gateway.off_loop import off_loop
from gateway.packs.repos import hold_repo
from gateway.packs.splice import entry_head
from gateway.packs.store_calls import store_call
from gateway.packs.transaction import transaction, tried_again
from gateway.packs.uploads import Upload, verified_content
from gateway.portions import portions
from gateway.storage.availability import ALWAYS_THERE, Admission, Need
from gateway.wire.ids import bare, object_id_of
from gateway.wire.messages import PushObject
from leases.database import Database
from leases.errors import Unavailable
from leases.ids import new_mpack_id
from leases.lessor import Caller
from leases.ports import BlobStore
from leases.steps import Step, Steps, no_steps

_log = structlog.get_logger(__name__)

# Hashing holds the event loop for about 1 ms per MiB; beyond this it goes to a thread.
HASH_INLINE_BYTES_MAX = 256 * 1024

# An object counts as known when its bytes can be read: through a live segment, or through an index
# row of other code, which has no segments row.
_KNOWN = """
SELECT DISTINCT i.entity_id FROM mpack_index i LEFT JOIN segments s USING (mpack_id)
 WHERE i.entity_type = 'object' AND i.entity_id = ANY({ids})
   AND s.state IS DISTINCT FROM 'pending'"""
_KNOWN_STILL = text(_KNOWN.format(ids="CAST(:ids AS text[])"))
_PENDING = "INSERT INTO segments (mpack_id, storage_key, state) VALUES ($1, $2, 'pending')"
# In the order of the ids, so that two pushes wait for each other but never in a circle.
_TOUCH = text("""
UPDATE objects SET path = objects.path
  FROM (SELECT object_id FROM objects WHERE object_id = ANY(CAST(:ids AS text[]))
         ORDER BY object_id FOR UPDATE) AS locked
 WHERE objects.object_id = locked.object_id""")
_OBJECTS = text("""
INSERT INTO objects (object_id, path, size_bytes, storage_uri)
SELECT object_id, path, size_bytes, :key
  FROM unnest(CAST(:ids AS text[]), CAST(:paths AS text[]), CAST(:sizes AS bigint[]))
       AS new (object_id, path, size_bytes)
ON CONFLICT (object_id) DO UPDATE SET storage_uri = excluded.storage_uri""")
_INDEX = text("""
INSERT INTO mpack_index (entity_type, entity_id, mpack_id, byte_offset, byte_length)
SELECT 'object', entity_id, :segment, byte_offset, byte_length
  FROM unnest(CAST(:ids AS text[]), CAST(:offsets AS bigint[]), CAST(:lengths AS bigint[]))
       AS new (entity_id, byte_offset, byte_length)
ON CONFLICT DO NOTHING""")
_MEMBERS = text("""
INSERT INTO object_refs (repo_id, object_id) SELECT :repo, unnest(CAST(:ids AS text[]))
ON CONFLICT DO NOTHING RETURNING object_id""")
_LEAVE = text("""
DELETE FROM object_refs WHERE repo_id = :repo AND object_id = ANY(CAST(:ids AS text[]))""")
_LIVE = text("""
UPDATE segments SET state = 'live', size_bytes = :size_bytes, sha256 = :sha256
 WHERE mpack_id = :segment AND codec <> 'condemned' RETURNING mpack_id""")
# The first took longer than `gc` waits, a day; a second time somebody deletes by hand.
_TRIES_MAX = 2
# A large push of uploads that fails, or whose caller gives up waiting, has stored the parts before.
_STREAMED_BYTES_MAX = 256 * 1024 * 1024


class _Digest(Protocol):
    """A hash that is being computed."""

    def hexdigest(self) -> str: ...


class _GivenUp(Exception):
    """The segment stood pending for so long that `gc` condemned it: write another."""


def segment_key(segment_id: str) -> str:
    """Where a segment's blob lies; never under the transient prefix."""
    return f"segments/{segment_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreResult:
    """How many objects of a chunk were new to the store, and how many it knew already."""

    stored: int
    skipped: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Verified objects by bare id, in id order: rows are then locked in one order by everybody."""

    contents: Mapping[str, bytes]
    paths: Mapping[str, str]


async def verify_objects(objects: Sequence[PushObject]) -> Chunk:
    """Recompute every object's id.

    Errors: Incomplete (422) naming the objects whose bytes have another id.
    """
    size_bytes = sum(len(item.content) for item in objects)
    return await off_loop(partial(_verify, objects), much=size_bytes > HASH_INLINE_BYTES_MAX)


def _verify(objects: Sequence[PushObject]) -> Chunk:
    stated = [(bare(item.object_id), item) for item in objects]
    wrong = [object_id for object_id, item in stated if object_id_of(item.content) != object_id]
    if wrong:
        raise Incomplete(
            f"The content of object {wrong[0]} has another id ({len(wrong)} such in all).",
            wrong=wrong,
        )
    stated.sort(key=lambda pair: pair[0])
    return Chunk(
        contents={object_id: item.content for object_id, item in stated},
        paths={object_id: item.path or "" for object_id, item in stated},
    )


class SegmentWriter:
    """Stores chunks of objects durably and gives a repo its share in them."""

    def __init__(
        self,
        database: Database,
        store: BlobStore,
        steps: Steps = no_steps,
        *,
        admission: Admission = ALWAYS_THERE,
    ) -> None:
        self._database = database
        self._admission = admission
        self._store = store
        self._step = steps

    async def store(
        self, repo_id: str, objects: Sequence[PushObject], caller: Caller
    ) -> StoreResult:
        """Verify these objects and store those that are new as one segment.

        Effects: writes one segment, index rows, the repo's membership (of known objects too).
        Errors:  Incomplete when an object has another id than stated: then nothing is stored.
        """
        return await self.store_verified(repo_id, await verify_objects(objects), caller)

    async def store_verified(self, repo_id: str, chunk: Chunk, caller: Caller) -> StoreResult:
        """As `store`, for objects that were verified already."""
        ids = list(chunk.contents)
        if not ids:
            return StoreResult(stored=0, skipped=0)
        return await _written_anew(lambda: self._store_unknown(repo_id, chunk, caller))

    async def store_uploads(
        self, repo_id: str, uploads: Sequence[Upload], caller: Caller
    ) -> StoreResult:
        """Store what was uploaded as segments of some size each, hashing the bytes on their way.

        What fails ends it; the segments before stand, so that the next try goes on from there.

        Effects: as `store`; the uploads stay as they are.
        Errors:  Incomplete (422) naming the object whose upload holds other bytes or is gone.
        """
        stored = skipped = 0
        for part in portions(
            uploads, weight=lambda upload: upload.size_bytes, weight_max=_STREAMED_BYTES_MAX
        ):
            done = await _written_anew(partial(self._store_part, repo_id, part, caller))
            stored, skipped = stored + done.stored, skipped + done.skipped
        return StoreResult(stored=stored, skipped=skipped)

    async def _store_part(
        self, repo_id: str, uploads: Sequence[Upload], caller: Caller
    ) -> StoreResult:
        known = await self._known([upload.object_id for upload in uploads])
        # Another repo's content becomes this one's only for who has shown that he has it.
        for upload in uploads:
            if upload.object_id in known:
                async for _ in verified_content(self._store, upload):
                    pass
        held = await self._hold(repo_id, known)
        new = [upload for upload in uploads if upload.object_id not in held]
        if new:
            segment = _streamed(self._store, new)
            await self._write_segment(repo_id, segment, caller)
        return StoreResult(stored=len(new), skipped=len(held))

    async def _store_unknown(self, repo_id: str, chunk: Chunk, caller: Caller) -> StoreResult:
        held = await self._hold(repo_id, await self._known(list(chunk.contents)))
        new = {key: content for key, content in chunk.contents.items() if key not in held}
        if new:
            work = partial(_segment_of, Chunk(contents=new, paths=chunk.paths))
            size_bytes = sum(map(len, new.values()))
            segment = await off_loop(work, much=size_bytes > HASH_INLINE_BYTES_MAX)
            await self._write_segment(repo_id, segment, caller)
        return StoreResult(stored=len(new), skipped=len(held))

    async def _known(self, ids: Sequence[str]) -> list[str]:
        """Those of these objects that stand already, whoever holds them."""
        rows = await self._database.fetch(_KNOWN.format(ids="$1::text[]"), ids)
        return sorted(row["entity_id"] for row in rows)

    async def _hold(self, repo_id: str, known: Sequence[str]) -> set[str]:
        """Make these objects the repo's, as far as they still stand: from then on `gc` keeps them.

        So a chunk that `gc` interferes with is never the worse for it: what could be held is, and
        the rest is stored as new.
        """
        if not known:
            return set()

        async def hold() -> set[str]:
            async with transaction(self._database) as connection:
                joined = await _join(connection, repo_id, known)
                # What the repo held before was held; the rest may have been found unheld.
                if not joined:
                    return set(known)
                await connection.execute(_TOUCH, {"ids": joined})
                still = set((await connection.execute(_KNOWN_STILL, {"ids": joined})).scalars())
                if gone := set(joined) - still:
                    await connection.execute(_LEAVE, {"repo": repo_id, "ids": list(gone)})
                return set(known) - gone

        return await tried_again(hold)

    async def _write_segment(self, repo_id: str, segment: _Segment, caller: Caller) -> None:
        with self._admission.turn(Need.WRITING):
            await self._write_admitted(repo_id, segment, caller)

    async def _write_admitted(self, repo_id: str, segment: _Segment, caller: Caller) -> None:
        segment_id = new_mpack_id()
        key = segment_key(segment_id)
        await self._database.execute(_PENDING, segment_id, key)
        self._step(Step.SEGMENT_PENDING)
        with store_call("put"):
            await self._store.put(key, segment.data)
        self._step(Step.SEGMENT_PUT)
        live = {
            "segment": segment_id,
            "size_bytes": sum(segment.lengths),
            "sha256": segment.digest.hexdigest(),
        }

        async def make_live() -> None:
            async with transaction(self._database) as connection:
                await _insert(connection, segment_id, segment)
                await _join(connection, repo_id, segment.ids)
                if (await connection.execute(_LIVE, live)).one_or_none() is None:
                    raise _GivenUp

        await tried_again(make_live)  # Every statement of it may run twice.
        self._step(Step.SEGMENT_LIVE)
        _log.info(
            "segment_stored",
            segment_id=segment_id,
            repo_id=repo_id,
            objects=len(segment.ids),
            actor=caller.actor,
            request_id=caller.request_id,
        )


async def _written_anew(store: Callable[[], Awaitable[StoreResult]]) -> StoreResult:
    """Store once more when the segment was given up meanwhile.

    Errors: Unavailable when that happens again.
    """
    for _ in range(_TRIES_MAX):
        try:
            return await store()
        except _GivenUp:
            continue
    raise Unavailable("The content of this push is removed as it arrives; try again later.")


async def _join(connection: AsyncConnection, repo_id: str, ids: Sequence[str]) -> list[str]:
    """Make these objects the repo's; answers those that were not before.

    Errors: RepoMissing.
    """
    await hold_repo(connection, repo_id)
    return sorted((await connection.execute(_MEMBERS, {"repo": repo_id, "ids": ids})).scalars())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Segment:
    """A blob of entries, in the order of `ids`; `digest` is the blob's once `data` was read."""

    ids: Sequence[str]
    paths: Sequence[str]
    sizes: Sequence[int]
    lengths: Sequence[int]
    data: bytes | AsyncIterator[bytes]
    digest: _Digest


def _segment_of(chunk: Chunk) -> _Segment:
    parts: list[bytes] = []
    lengths: list[int] = []
    for object_id, content in chunk.contents.items():
        head = entry_head(object_id, len(content))
        parts += (head, content)
        lengths.append(len(head) + len(content))
    data = b"".join(parts)
    return _Segment(
        ids=list(chunk.contents),
        paths=[chunk.paths[object_id] for object_id in chunk.contents],
        sizes=[len(content) for content in chunk.contents.values()],
        lengths=lengths,
        data=data,
        digest=hashlib.sha256(data),
    )


def _streamed(store: BlobStore, uploads: Sequence[Upload]) -> _Segment:
    digest = hashlib.sha256()
    heads = [entry_head(upload.object_id, upload.size_bytes) for upload in uploads]

    async def data() -> AsyncIterator[bytes]:
        for head, upload in zip(heads, uploads, strict=True):
            digest.update(head)
            yield head
            async for content in verified_content(store, upload):
                await asyncio.to_thread(digest.update, content)
                yield content

    sizes = [upload.size_bytes for upload in uploads]
    return _Segment(
        ids=[upload.object_id for upload in uploads],
        paths=[""] * len(uploads),
        sizes=sizes,
        lengths=[len(head) + size for head, size in zip(heads, sizes, strict=True)],
        data=data(),
        digest=digest,
    )


async def _insert(connection: AsyncConnection, segment_id: str, segment: _Segment) -> None:
    objects = {"ids": segment.ids, "paths": segment.paths, "sizes": segment.sizes}
    await connection.execute(_OBJECTS, objects | {"key": segment_key(segment_id)})
    index = {
        "ids": segment.ids,
        "offsets": list(accumulate(segment.lengths[:-1], initial=0)),
        "lengths": segment.lengths,
    }
    await connection.execute(_INDEX, index | {"segment": segment_id})
