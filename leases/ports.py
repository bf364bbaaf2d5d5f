"""What the lease machinery needs from outside: a blob store and a clock.

A store must have `BlobStore`'s members. The others are found by looking for the method, so a
host's own backend may leave them out: without `list` there is no reconcile and no owner marker,
without `delete_many` deletions go one by one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol, cast, runtime_checkable


class DeleteOutcome(StrEnum):
    """What a deletion found; stores that cannot tell always say `DELETED`."""

    DELETED = "deleted"
    ALREADY_GONE = "already_gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobInfo:
    """One blob as a listing or a head request shows it."""

    key: str
    size_bytes: int
    modified_at: datetime


class BlobStore(Protocol):
    """The required part of a storage backend.

    `get` reads `[start, stop)` and raises `BlobMissing` where it can tell; `delete` of an absent
    key succeeds; `presign_get` answers a URL that is dead `expires_in` seconds after the current
    whole second. Any other exception counts as the store's failure.
    """

    @property
    def supports_presign(self) -> bool: ...

    async def put(self, key: str, data: bytes | AsyncIterator[bytes]) -> None: ...

    async def get(self, key: str, start: int | None = None, stop: int | None = None) -> bytes: ...

    async def delete(self, key: str) -> DeleteOutcome | None: ...

    async def presign_get(self, key: str, *, expires_in: int) -> str: ...


@runtime_checkable
class DeletesMany(Protocol):
    """Deletes a batch; the answer holds an outcome or the exception for every key."""

    async def delete_many(self, keys: Sequence[str]) -> Mapping[str, DeleteOutcome | Exception]: ...


@runtime_checkable
class ListsBlobs(Protocol):
    """Lists every blob whose key starts with `prefix`, in no promised order."""

    def list(self, prefix: str) -> AsyncIterator[BlobInfo]: ...


@runtime_checkable
class HeadsBlobs(Protocol):
    """Looks at one blob without reading it; None where there is none."""

    async def head(self, key: str) -> BlobInfo | None: ...


@runtime_checkable
class SignsUploads(Protocol):
    """Signs URLs by which somebody else stores a blob; dead as those of `presign_get` are."""

    async def presign_put(self, key: str, *, expires_in: int) -> str: ...


@runtime_checkable
class AbortsUploads(Protocol):
    """Aborts unfinished uploads under a key; answers how many there were."""

    async def abort_uploads(self, key: str) -> int: ...


@runtime_checkable
class TellsVersioning(Protocol):
    """Says whether the store keeps what is deleted: then nothing that is leased is ever gone."""

    async def versioning(self) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LifecycleRule:
    """What the store does by itself below the transient prefix; None: it does not do that."""

    expire_days: int | None
    abort_uploads_days: int | None


@runtime_checkable
class TellsLifecycle(Protocol):
    """Shows the rule that is the last net below the transient prefix; None where there is none."""

    async def lifecycle(self) -> LifecycleRule | None: ...


@runtime_checkable
class TellsTime(Protocol):
    """Says what the store's own clock shows, to the second or better."""

    async def store_time(self) -> datetime: ...


class SigningEnds(Protocol):
    """Signs with temporary keys: no URL outlives them. The time of their end, if there is one."""

    async def signing_ends_at(self) -> datetime | None: ...


async def signing_end(store: BlobStore) -> datetime | None:
    """When URLs that this store signs now end at the latest; None: only by their own life."""
    # Not `isinstance`, which goes through the protocol's names anew, twice for every fetch.
    if not hasattr(store, "signing_ends_at"):
        return None
    return await cast("SigningEnds", store).signing_ends_at()


class Clock(Protocol):
    """The process's clocks: hints about when to look again, never a reason to delete."""

    def now(self) -> datetime: ...

    def monotonic(self) -> float: ...

    async def sleep(self, seconds: float) -> None: ...
