"""A store whose silence is noticed; it does what the store behind it does.

Only what requests call is passed on. A host's store need not have the optional methods, and what
is detected by its method must be there or not be there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from gateway.storage.availability import Availability, Need
from leases.circuit import is_outage
from leases.ports import BlobInfo, BlobStore, DeleteOutcome, HeadsBlobs, SignsUploads


class WatchedStore:
    """What every store can do. Failures are passed on as they are."""

    def __init__(self, store: BlobStore, availability: Availability) -> None:
        self._store = store
        self._availability = availability

    @contextmanager
    def _watched(self, need: Need, *, is_small: bool = True) -> Iterator[None]:
        suspect, seconds = self._availability.suspect, self._availability.slow_seconds
        # Asked about while it still hangs: its caller may wait for half a minute.
        slow = None
        if is_small:
            slow = asyncio.get_running_loop().call_later(seconds, suspect, need)
        try:
            yield
        except Exception as error:
            if is_outage(error):
                suspect(need)
            raise
        finally:
            if slow is not None:
                slow.cancel()

    @property
    def supports_presign(self) -> bool:
        return self._store.supports_presign

    async def put(self, key: str, data: bytes | AsyncIterator[bytes]) -> None:
        with self._watched(Need.WRITING, is_small=isinstance(data, bytes)):
            await self._store.put(key, data)

    async def get(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        with self._watched(Need.READING, is_small=stop is not None):
            return await self._store.get(key, start, stop)

    async def delete(self, key: str) -> DeleteOutcome | None:
        """Not watched: the reaper has a circuit of its own."""
        return await self._store.delete(key)

    async def presign_get(self, key: str, *, expires_in: int) -> str:
        """Not watched: signing calls nobody."""
        return await self._store.presign_get(key, expires_in=expires_in)


class _WatchedHeads(WatchedStore):
    """A store that can look at a blob as well."""

    async def head(self, key: str) -> BlobInfo | None:
        assert isinstance(self._store, HeadsBlobs)
        with self._watched(Need.READING):
            return await self._store.head(key)


class _WatchedUploads(_WatchedHeads):
    """A store that signs uploads as well."""

    async def presign_put(self, key: str, *, expires_in: int) -> str:
        assert isinstance(self._store, SignsUploads)
        return await self._store.presign_put(key, expires_in=expires_in)


def watched(store: BlobStore, availability: Availability) -> WatchedStore:
    """This store, with as many of the methods as it has and requests need."""
    if not isinstance(store, HeadsBlobs):
        return WatchedStore(store, availability)
    if not isinstance(store, SignsUploads):
        return _WatchedHeads(store, availability)
    return _WatchedUploads(store, availability)
