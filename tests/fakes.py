"""Stand-ins with real behaviour: what a host might bring along."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from leases.clock import SystemClock
from leases.errors import BlobMissing
from leases.ports import BlobInfo, DeleteOutcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call the store saw, and when (monotonic seconds, when the call began)."""

    name: str
    key: str
    at: float


class MemoryStore:
    """A host's own backend: the required methods only, blobs in a dict.

    `calls` holds every call in order; `fail_next_deletes(n)` makes the next n deletions raise.
    """

    def __init__(self, *, supports_presign: bool = True) -> None:
        self.supports_presign = supports_presign
        self.blobs: dict[str, bytes] = {}
        self.calls: list[Call] = []
        self._delete_failures: list[Exception] = []

    def fail_next_deletes(self, count: int, error: Exception | None = None) -> None:
        """The next `count` deletions raise this (by default an error of no known kind)."""
        self._delete_failures += [error or RuntimeError("the host's storage failed")] * count

    def calls_of(self, name: str, key: str | None = None) -> list[Call]:
        """The calls of one method, on one key if it is given."""
        return [call for call in self.calls if call.name == name and key in (None, call.key)]

    async def put(self, key: str, data: bytes | AsyncIterator[bytes]) -> None:
        self._saw("put", key)
        if isinstance(data, bytes):
            self.blobs[key] = data
        else:
            self.blobs[key] = b"".join([chunk async for chunk in data])

    async def get(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        self._saw("get", key)
        if key not in self.blobs:
            raise BlobMissing
        return self.blobs[key][start:stop]

    async def delete(self, key: str) -> None:
        self._saw("delete", key)
        if self._delete_failures:
            raise self._delete_failures.pop(0)
        self.blobs.pop(key, None)

    async def presign_get(self, key: str, *, expires_in: int) -> str:
        self._saw("presign_get", key)
        if not self.supports_presign:
            raise NotImplementedError("this backend has no URLs")
        return f"https://blobs.example/{key}?expires_in={expires_in}"

    def _saw(self, name: str, key: str) -> None:
        self.calls.append(Call(name=name, key=key, at=SystemClock().monotonic()))


class ListingStore(MemoryStore):
    """A backend with every optional method; a test may put its own behaviour into the hooks.

    `on_delete(key)` and `on_get(key)` run before the method does its work, and may raise or wait.
    """

    def __init__(self) -> None:
        super().__init__()
        self.on_delete: Callable[[str], Awaitable[None]] | None = None
        self.on_get: Callable[[str], Awaitable[None]] | None = None
        self.on_abort: Callable[[str], Awaitable[None]] | None = None
        self.modified_at: dict[str, datetime] = {}

    async def get(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        if self.on_get is not None:
            await self.on_get(key)
        return await super().get(key, start, stop)

    async def delete_many(self, keys: Sequence[str]) -> Mapping[str, DeleteOutcome | Exception]:
        answers: dict[str, DeleteOutcome | Exception] = {}
        for key in keys:
            there = key in self.blobs
            try:
                if self.on_delete is not None:
                    await self.on_delete(key)
                await self.delete(key)
            except Exception as error:  # noqa: BLE001  the answer for this key
                answers[key] = error
            else:
                answers[key] = DeleteOutcome.DELETED if there else DeleteOutcome.ALREADY_GONE
        return answers

    async def list(self, prefix: str) -> AsyncIterator[BlobInfo]:
        self._saw("list", prefix)
        for key in sorted(self.blobs):
            if key.startswith(prefix) and (info := await self.head(key)):
                yield info

    async def head(self, key: str) -> BlobInfo | None:
        if key not in self.blobs:
            return None
        modified_at = self.modified_at.get(key) or SystemClock().now()
        return BlobInfo(key=key, size_bytes=len(self.blobs[key]), modified_at=modified_at)

    async def abort_uploads(self, key: str) -> int:
        self._saw("abort_uploads", key)
        if self.on_abort is not None:
            await self.on_abort(key)
        return 0


class ShiftedClock(SystemClock):
    """The machine's clocks with a wall clock that is wrong by `shift`, which a test may change."""

    def __init__(self, shift: timedelta = timedelta()) -> None:
        self.shift = shift

    def now(self) -> datetime:
        return super().now() + self.shift


class FakeClock:
    """A clock that stands still until `advance`, which wakes whoever slept long enough."""

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._now = start
        self._monotonic = 1000.0
        self._sleepers: list[tuple[float, int, asyncio.Event]] = []
        self._count = 0

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    async def sleep(self, seconds: float) -> None:
        woken = asyncio.Event()
        self._count += 1
        heapq.heappush(self._sleepers, (self._monotonic + seconds, self._count, woken))
        await woken.wait()

    def shift(self, seconds: float) -> None:
        """The wall clock jumps; the monotonic one does not notice."""
        self._now += timedelta(seconds=seconds)

    def advance(self, seconds: float) -> None:
        """Time passes on both clocks."""
        self._now += timedelta(seconds=seconds)
        self._monotonic += seconds
        while self._sleepers and self._sleepers[0][0] <= self._monotonic:
            heapq.heappop(self._sleepers)[2].set()
