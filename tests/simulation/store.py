"""One object store for all replicas, and each replica's way to it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from leases.errors import BlobMissing, StoreUnavailable
from leases.ports import BlobInfo, DeleteOutcome
from tests.simulation.clocks import SimulatedClock
from tests.simulation.loop import SimulatedLoop
from tests.simulation.network import Weather, latency
from tests.simulation.trace import Trace

# A timed-out PUT may still lie in the store's queue for so long.
_GHOST_SECONDS_MAX = 20.0
# What an S3 client waits for a silent store at most, all tries together.
_SILENCE_SECONDS_MAX = 8.0


@dataclass(slots=True)
class Blobs:
    """What is stored. `deleted` hears of each deletion before it is done, `stored` afterwards."""

    sizes: dict[str, bytes] = field(default_factory=dict)
    deletions: set[str] = field(default_factory=set)
    # Keys that the store refuses to delete, for reasons of their own.
    locked: set[str] = field(default_factory=set)
    # Unfinished uploads, which no deletion removes.
    uploads: set[str] = field(default_factory=set)
    before_delete: Callable[[str], None] = lambda _key: None
    stored: Callable[[str], None] = lambda _key: None

    def put(self, key: str, data: bytes) -> None:
        self.sizes[key] = data
        self.stored(key)

    def delete(self, key: str) -> DeleteOutcome:
        self.before_delete(key)
        self.deletions.add(key)
        gone = self.sizes.pop(key, None) is None
        return DeleteOutcome.ALREADY_GONE if gone else DeleteOutcome.DELETED


class SimulatedStore:
    """A `BlobStore` with bulk deletions, listings and heads."""

    supports_presign = True

    def __init__(
        self,
        replica: str,
        blobs: Blobs,
        *,
        loop: SimulatedLoop,
        chance: random.Random,
        weather: Weather,
        trace: Trace,
        clock: SimulatedClock,
    ) -> None:
        self._replica = replica
        self._blobs = blobs
        self._loop = loop
        self._chance = chance
        self._weather = weather
        self._trace = trace
        self._clock = clock

    async def _there(self) -> None:
        await asyncio.sleep(latency(self._chance, self._weather))
        if self._weather.unreachable(self._replica):
            refused = self._chance.random() < 0.5
            await asyncio.sleep(0.001 if refused else self._chance.uniform(1, _SILENCE_SECONDS_MAX))
            raise StoreUnavailable(cause="out of reach")

    async def _back(self, *, lost: bool = False) -> None:
        await asyncio.sleep(latency(self._chance, self._weather))
        if lost or self._weather.unreachable(self._replica):
            raise StoreUnavailable(cause="answer lost")

    def _trouble(self) -> float | None:
        """Something between 0 and 1 when this call goes wrong."""
        if self._chance.random() >= self._weather.flaky_ratio:
            return None
        return self._chance.random()

    async def put(self, key: str, data: bytes | AsyncIterator[bytes]) -> None:
        assert isinstance(data, bytes)
        await self._there()
        trouble = self._trouble()
        if trouble is not None and trouble < 0.5:
            self._land_later(key, data)
            await asyncio.sleep(self._chance.uniform(0, 3))
            raise StoreUnavailable(cause="put timed out")
        if trouble is not None and trouble < 0.7:
            self._blobs.uploads.add(key)
            raise StoreUnavailable(cause="broken off")
        self._blobs.put(key, data)
        self._trace(self._replica, f"store put {key}")
        await self._back(lost=trouble is not None)

    def _land_later(self, key: str, data: bytes) -> None:
        def landed() -> None:
            self._blobs.put(key, data)
            self._trace("store", f"ghost put {key}")

        delay = self._chance.uniform(0, _GHOST_SECONDS_MAX)
        self._loop.call_later(delay, landed, context=self._loop.world.context)

    async def abort_uploads(self, key: str) -> int:
        await self._there()
        found = key in self._blobs.uploads
        self._blobs.uploads.discard(key)
        await self._back(lost=self._trouble() is not None)
        return int(found)

    async def get(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        await self._there()
        found = self._blobs.sizes.get(key)
        await self._back(lost=self._trouble() is not None)
        if found is None:
            raise BlobMissing
        return found[start:stop]

    async def delete(self, key: str) -> DeleteOutcome:
        answers = await self.delete_many([key])
        answer = answers[key]
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def delete_many(self, keys: Sequence[str]) -> Mapping[str, DeleteOutcome | Exception]:
        await self._there()
        trouble = self._trouble()
        answers: dict[str, DeleteOutcome | Exception] = {}
        for key in keys:
            if key in self._blobs.locked:
                answers[key] = PermissionError("this key is locked")
            elif trouble is not None and self._chance.random() < trouble:
                answers[key] = StoreUnavailable(cause="slow down")
            else:
                answers[key] = self._blobs.delete(key)
        self._trace(self._replica, f"store delete {_told(answers)}")
        await self._back(lost=trouble is not None and trouble > 0.7)
        return answers

    async def list(self, prefix: str) -> AsyncIterator[BlobInfo]:
        await self._there()
        found = sorted(key for key in self._blobs.sizes if key.startswith(prefix))
        await self._back(lost=self._trouble() is not None)
        for key in found:
            yield self._info(key)

    async def head(self, key: str) -> BlobInfo | None:
        await self._there()
        there = key in self._blobs.sizes
        await self._back(lost=self._trouble() is not None)
        return self._info(key) if there else None

    def _info(self, key: str) -> BlobInfo:
        size = len(self._blobs.sizes.get(key, b""))
        return BlobInfo(key=key, size_bytes=size, modified_at=self._clock.now())

    async def presign_get(self, key: str, *, expires_in: int) -> str:
        return f"https://store.example/{key}?expires_in={expires_in}"


def _told(answers: Mapping[str, DeleteOutcome | Exception]) -> str:
    return " ".join(
        f"{key}={answer.value if isinstance(answer, DeleteOutcome) else type(answer).__name__}"
        for key, answer in answers.items()
    )
