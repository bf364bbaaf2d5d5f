"""One stored object by itself: its size, and its content by ranges."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from gateway.packs.foreign import extract_foreign
from gateway.packs.places import Places, find_places
from gateway.packs.policy import PackPolicy
from gateway.packs.sharing import OpenReader
from gateway.packs.splice import ENTRY_HEAD_BYTES_MAX, check_entry
from gateway.packs.spool import Spool, SpoolBudget
from gateway.packs.store_calls import stored_range
from gateway.storage.availability import ALWAYS_THERE, Admission, Need
from leases.errors import Corrupt
from leases.ports import BlobStore

_CHUNK_BYTES = 1024 * 1024


@dataclass(slots=True, kw_only=True)
class StoredObject:
    """An object that can be read; close it when it has been."""

    size_bytes: int
    _read: Callable[[int, int], Awaitable[bytes]]
    _offset: int
    _scratch: Spool

    async def chunks(self, start: int, stop: int) -> AsyncIterator[bytes]:
        """The content's bytes `[start, stop)`, in order.

        Errors: IncompleteRepo, Corrupt, StoreUnavailable.
        """
        for begin in range(start, stop, _CHUNK_BYTES):
            until = min(begin + _CHUNK_BYTES, stop)
            data = await self._read(self._offset + begin, self._offset + until)
            if len(data) != until - begin:
                raise Corrupt("A segment is shorter than its index says.", start=begin)
            yield data

    async def close(self) -> None:
        """Free what reading took."""
        await self._scratch.close()


class ObjectReader:
    """Opens objects that a repo holds; the caller has made sure that it does."""

    def __init__(
        self,
        store: BlobStore,
        policy: PackPolicy,
        budget: SpoolBudget,
        *,
        admission: Admission = ALWAYS_THERE,
    ) -> None:
        self._store = store
        self._admission = admission
        self._policy = policy
        self._budget = budget

    async def open(self, open_reader: OpenReader, repo_id: str, object_id: str) -> StoredObject:
        """Find the object; everything is read from the database before the store is asked.

        Errors: IncompleteRepo when it is stored nowhere; Corrupt, SpoolFull, StoreUnavailable.
        """
        async with open_reader() as reader:
            places = await find_places(reader, repo_id, [object_id])
        with self._admission.turn(Need.READING):
            return await self._open(places, object_id)

    async def _open(self, places: Places, object_id: str) -> StoredObject:
        scratch = Spool(self._policy, self._budget)
        try:
            await extract_foreign(
                self._store, self._policy, places, scratch=scratch, budget=self._budget
            )
            place = places[0]
            source = places.sources[place.source]
            read = (
                scratch.read
                if source.foreign
                else partial(stored_range, self._store, source.storage_key)
            )
            head = await read(place.offset, place.offset + min(ENTRY_HEAD_BYTES_MAX, place.length))
            try:
                content = check_entry(head, object_id, place.length)
            except ValueError as error:
                message = "A segment does not hold this object."
                raise Corrupt(message, object_id=object_id) from error
        except BaseException:
            await scratch.close()
            raise
        return StoredObject(
            size_bytes=place.length - content,
            _read=read,
            _offset=place.offset + content,
            _scratch=scratch,
        )
