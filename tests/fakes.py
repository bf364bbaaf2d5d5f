"""Stand-ins with real behaviour: what a host might bring along."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from leases.clock import SystemClock
from leases.errors import BlobMissing


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
