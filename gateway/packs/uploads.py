"""Direct uploads: large objects that clients put into quarantine by URL, and that a push claims.

An upload is a blob under the transient prefix with a lease of its own, of kind `upload`: nobody
vouches for its bytes, and nothing durable ever points to it. A push streams them into a segment and
hashes those very bytes, because the URL may still be used to exchange them; what it stored is what
it hashed. The upload itself goes at its deadline, claimed or not.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import text

from gateway.errors import Incomplete, TooLarge
from gateway.packs.store_calls import store_call
from gateway.packs.transaction import Reader
from gateway.storage.availability import ALWAYS_THERE, Admission, Need
from gateway.together import together
from leases.engine import LeaseEngine
from leases.errors import BlobMissing
from leases.ids import new_mpack_id
from leases.lessor import Caller
from leases.policy import LeasePolicy
from leases.ports import BlobStore, HeadsBlobs, SignsUploads

_READ_BYTES = 4 * 1024 * 1024
_LOOKS_AT_ONCE = 16
# A client that tried again has asked for another URL each time; the newest that is there counts.
_TRIES_LOOKED_AT_MAX = 8

# One that is due in a moment may be deleted while it is read.
_OPEN = text("""
SELECT object_id, storage_key FROM (
    SELECT object_id, storage_key, row_number() OVER (
               PARTITION BY object_id ORDER BY mpack_id DESC) AS nth
      FROM mpack_leases
     WHERE repo_id = :repo_id AND object_id = ANY(CAST(:ids AS text[]))
       AND kind = 'upload' AND state <> 'reclaimed' AND revoked_at IS NULL
       AND delete_at > clock_timestamp() + make_interval(secs => :margin)) AS found
 WHERE nth <= :tries ORDER BY object_id, nth""")

Candidates = Mapping[str, Sequence[str]]


class Upload(NamedTuple):
    """An uploaded blob that a push wants to claim; its bytes are not looked at yet."""

    object_id: str
    storage_key: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Presigned:
    """URLs by bare object id; `inline`: those that are to come, or are to be had, without one."""

    urls: Mapping[str, str]
    inline: Collection[str] = ()


class Uploads:
    """Hands out URLs to upload to, and finds what came."""

    def __init__(
        self,
        store: BlobStore,
        policy: LeasePolicy,
        *,
        upload_bytes_max: int,
        admission: Admission = ALWAYS_THERE,
    ) -> None:
        self._store = store
        self._admission = admission
        self._policy = policy
        self._bytes_max = upload_bytes_max

    async def presign(
        self, engine: LeaseEngine, repo_id: str, object_ids: Collection[str], *, caller: Caller
    ) -> Presigned:
        """A URL for each of these objects, whether or not somebody has it already.

        Where a quota leaves room for some of them, the others come inline: they need no lease
        there, and a push of more objects than the quota has leases gets through. An error would
        make clients in the field send all of them inline.

        Effects: a lease for each; none where the store signs no uploads: then all come inline.
        Errors:  QuotaReached when there is room for none; Unavailable; StoreUnavailable while
                 there is nothing to upload to.
        """
        store = self._store
        signs = store.supports_presign and isinstance(store, SignsUploads)
        if not (signs and isinstance(store, HeadsBlobs) and object_ids):
            return Presigned(urls={}, inline=list(object_ids))
        assert isinstance(store, SignsUploads)
        self._admission.check(Need.WRITING)
        wanted = {new_mpack_id(): object_id for object_id in object_ids}
        sizes = dict.fromkeys(wanted, engine.quotas.upload_bytes_max)
        seconds = max(1, int(self._policy.upload_limit_seconds))
        urls = {}
        async with engine.quotas.room(repo_id, sizes, in_part=True) as granted:
            taken = {mpack_id: wanted.pop(mpack_id) for mpack_id in granted}
            leases = engine.lessor.reserve_uploads(taken, repo_id=repo_id, caller=caller)
            async for lease in leases:
                with store_call("presign_put"):
                    url = await store.presign_put(lease.storage_key, expires_in=seconds)
                urls[taken[lease.mpack_id]] = url
        return Presigned(urls=urls, inline=list(wanted.values()))

    async def candidates(
        self, reader: Reader, repo_id: str, object_ids: Collection[str]
    ) -> Candidates:
        """Where these objects may have been uploaded to, the newest first; by object id."""
        found: dict[str, list[str]] = {}
        if not object_ids:
            return found
        asked = {
            "repo_id": repo_id,
            "ids": list(object_ids),
            "margin": self._policy.upload_margin_seconds,
            "tries": _TRIES_LOOKED_AT_MAX,
        }
        for row in await reader.execute(_OPEN, asked):
            found.setdefault(row.object_id, []).append(row.storage_key)
        return found

    async def arrived(self, candidates: Candidates) -> list[Upload]:
        """Those that are there, in the order of their object ids.

        Errors: TooLarge for one that no pack could hold; StoreUnavailable.
        """
        if not candidates:
            return []
        self._admission.check(Need.READING)
        store = self._store
        assert isinstance(store, HeadsBlobs), "only such a store was handed out URLs of"
        found: list[Upload] = []
        turns = asyncio.Semaphore(_LOOKS_AT_ONCE)

        async def look(object_id: str, keys: Sequence[str]) -> None:
            for key in keys:
                async with turns:
                    with store_call("head"):
                        info = await store.head(key)
                if info is not None:
                    found.append(Upload(object_id, key, info.size_bytes))
                    return

        async with together() as tasks:
            for object_id, keys in candidates.items():
                tasks.create_task(look(object_id, keys))
        for upload in found:
            if upload.size_bytes > self._bytes_max:
                raise TooLarge(
                    f"The upload of object {upload.object_id} is over {self._bytes_max:,} bytes.",
                    object_id=upload.object_id,
                )
        return sorted(found)


async def verified_content(store: BlobStore, upload: Upload) -> AsyncIterator[bytes]:
    """The upload's bytes, in order; the last of them only once all have the object's hash.

    Whoever stores what comes out of here must store nothing when it raises.

    Errors: Incomplete (422) that names the object, when its bytes are others or are gone.
    """
    digest = hashlib.sha256()
    object_id, key, size_bytes = upload
    for start in range(0, size_bytes, _READ_BYTES):
        stop = min(start + _READ_BYTES, size_bytes)
        try:
            with store_call("get"):
                data = await store.get(key, start, stop)
        except BlobMissing as error:
            raise Incomplete(
                f"The upload of object {object_id} is gone; push it again.", missing=[object_id]
            ) from error
        await asyncio.to_thread(digest.update, data)
        if len(data) != stop - start or (stop == size_bytes and digest.hexdigest() != object_id):
            break
        yield data
    if digest.hexdigest() != object_id:
        raise Incomplete(f"The upload of object {object_id} holds other bytes.", wrong=[object_id])
