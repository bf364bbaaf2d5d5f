"""A store whose calls are timed; it does what the store behind it does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Protocol

from leases.errors import BlobMissing
from leases.ports import (
    AbortsUploads,
    BlobInfo,
    BlobStore,
    DeleteOutcome,
    DeletesMany,
    HeadsBlobs,
    ListsBlobs,
    SignsUploads,
    signing_end,
)


class FullStore(
    BlobStore, DeletesMany, ListsBlobs, HeadsBlobs, SignsUploads, AbortsUploads, Protocol
):
    """What both of our own adapters can do; a host's store is not wrapped."""


class StoreTimes(Protocol):
    """Who wants to know."""

    def store_call(self, call: str, seconds: float, *, ok: bool) -> None:
        """One call of the store; a blob that is not there is an answer, not a failure."""


class TimedStore:
    """Passes every call on, and tells how long it took."""

    def __init__(
        self, store: FullStore, times: StoreTimes, *, monotonic: Callable[[], float]
    ) -> None:
        self._store = store
        self._times = times
        self._monotonic = monotonic

    @contextmanager
    def _timed(self, call: str) -> Iterator[None]:
        began, ok = self._monotonic(), False
        try:
            yield
            ok = True
        except BlobMissing:
            ok = True
            raise
        finally:
            self._times.store_call(call, self._monotonic() - began, ok=ok)

    @property
    def supports_presign(self) -> bool:
        return self._store.supports_presign

    async def put(self, key: str, data: bytes | AsyncIterator[bytes]) -> None:
        with self._timed("put"):
            await self._store.put(key, data)

    async def get(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        with self._timed("get"):
            return await self._store.get(key, start, stop)

    async def delete(self, key: str) -> DeleteOutcome | None:
        with self._timed("delete"):
            return await self._store.delete(key)

    async def delete_many(self, keys: Sequence[str]) -> Mapping[str, DeleteOutcome | Exception]:
        with self._timed("delete_many"):
            return await self._store.delete_many(keys)

    async def head(self, key: str) -> BlobInfo | None:
        with self._timed("head"):
            return await self._store.head(key)

    async def list(self, prefix: str) -> AsyncIterator[BlobInfo]:
        """Not timed: how long it takes is mostly what the caller does in between."""
        async for blob in self._store.list(prefix):
            yield blob

    async def abort_uploads(self, key: str) -> int:
        with self._timed("abort_uploads"):
            return await self._store.abort_uploads(key)

    async def presign_get(self, key: str, *, expires_in: int) -> str:
        """Not timed: signing calls nobody."""
        return await self._store.presign_get(key, expires_in=expires_in)

    async def presign_put(self, key: str, *, expires_in: int) -> str:
        """Not timed either."""
        return await self._store.presign_put(key, expires_in=expires_in)

    async def signing_ends_at(self) -> datetime | None:
        """When URLs signed now end at the latest; None: by their own life alone."""
        return await signing_end(self._store)
