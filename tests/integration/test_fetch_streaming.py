"""A large pack is stored while it is made: whole and leased, or not at all."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import msgpack
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.errors import IncompleteRepo
from leases.errors import BlobMissing, StoreUnavailable
from leases.policy import LeasePolicy
from leases.steps import Step
from tests.factories import History
from tests.fakes import MemoryStore
from tests.integration.fetching import Bench, bench_on, settings_of

_MIB = 1 << 20
_OBJECTS = 24


class Streaming(MemoryStore):
    """Takes `takes` chunks of a streamed pack, then does what `then` says: goes on, `fail`s, says
    that it is through (`lie`) or stops (`stop`). With `lose`, the segment is gone from then on.

    After each chunk it waits for `pause_seconds`.
    """

    def __init__(self, then: str = "", *, takes: int = 3, pause_seconds: float = 0) -> None:
        super().__init__()
        self._then = then
        self._takes = takes
        self._pause_seconds = pause_seconds
        self.taken = 0
        self.lost = False

    async def get(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        if self.lost and key.startswith("segments/"):
            raise BlobMissing
        return await super().get(key, start, stop)

    async def put(self, key: str, data: bytes | AsyncIterator[bytes]) -> None:
        if isinstance(data, bytes):
            await super().put(key, data)
            return
        self._saw("put", key)
        self.blobs[key] = b""  # As bad as can be: a store that shows what is not whole.
        async for chunk in data:
            self.blobs[key] += chunk
            self.taken += 1
            await asyncio.sleep(self._pause_seconds)
            if self.taken == self._takes:
                if self._then == "fail":
                    raise OSError(28, "no space left")
                if self._then == "lie":
                    return
                if self._then == "stop":
                    await asyncio.Event().wait()
                self.lost = self._then == "lose"


def history_of_mebibytes() -> History:
    history, chance = History(), random.Random(1)
    history.commit({f"{at:02}": history.content(chance.randbytes(_MIB)) for at in range(_OBJECTS)})
    return history


async def fetch(bench: Bench, **options: Any) -> Any:
    history = history_of_mebibytes()
    repo_id = await bench.pushed(history)
    return await bench.fetch(repo_id, [history.head.commit_id], **options)


async def lease(bench: Bench) -> Any:
    return await bench.database.fetchrow("SELECT * FROM mpack_leases")


async def reaped(bench: Bench) -> None:
    """Wait for the lease's end."""
    async with asyncio.timeout(10):
        while (await lease(bench))["state"] != "reclaimed":  # noqa: ASYNC110  there is no event for it
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("encoding", ["raw", "zstd"])
async def test_a_streamed_pack_is_what_its_lease_says(engine: AsyncEngine, encoding: Any) -> None:
    steps: list[Step] = []
    async with bench_on(engine, store=Streaming(), steps=steps.append) as bench:
        answer = await fetch(bench, encoding=encoding)
        stored = bench.stored(answer)
        row = await lease(bench)
        assert (row["state"], row["size_bytes"]) == ("active", len(stored))
        assert row["sha256"] == answer["sha256"] == hashlib.sha256(stored).hexdigest()
        assert len(bench.pack(answer)["objects"]) == _OBJECTS
        assert bench.gateway.packs.budget.bytes_held == 0
        names = [step.value for step in steps if step.value.startswith("fetch.")]
        assert names == [step.value for step in Step if step.value in names]
        assert {Step.LEASE_RESERVED, Step.PACK_BUILT, Step.PACK_PUT} <= set(steps)


async def test_equal_requests_are_equal_bytes(engine: AsyncEngine) -> None:
    async with bench_on(engine, store=Streaming()) as bench:
        history = history_of_mebibytes()
        repo_id = await bench.pushed(history)
        want = [history.head.commit_id]
        first, second = [await bench.fetch(repo_id, want, share=False) for _ in range(2)]
        assert first["mpack_id"] != second["mpack_id"]
        assert bench.stored(first) == bench.stored(second)


@pytest.mark.parametrize(
    "then, error",
    [("lose", IncompleteRepo), ("fail", StoreUnavailable), ("lie", StoreUnavailable)],
)
async def test_what_breaks_off_is_never_activated_and_soon_gone(
    engine: AsyncEngine, then: str, error: type[Exception]
) -> None:
    """No byte more is stored, so nothing has to wait for the reservation's deadline."""
    async with bench_on(engine, store=Streaming(then)) as bench:
        with pytest.raises(error):
            await fetch(bench)
        await reaped(bench)
        row = await lease(bench)
        assert row["sha256"] is None
        assert row["activated_at"] is None
        assert bench.transient() == []
        assert bench.gateway.packs.budget.bytes_held == 0
        assert await bench.database.fetch("SELECT * FROM pack_slots") == []


async def test_a_segment_lost_on_the_way_is_told_and_stored_again_helps(
    engine: AsyncEngine,
) -> None:
    store = Streaming("lose")
    async with bench_on(engine, store=store) as bench:
        history = history_of_mebibytes()
        repo_id = await bench.pushed(history)
        with pytest.raises(IncompleteRepo):
            await bench.fetch(repo_id, [history.head.commit_id])
        store.lost = False
        answer = await bench.fetch(repo_id, [history.head.commit_id])
        assert msgpack.unpackb(bench.stored(answer))["objects"]


async def test_a_slow_put_that_gets_on_outlives_the_upload_limit(engine: AsyncEngine) -> None:
    """The reservation's deadline moves on while bytes are taken."""
    policy = LeasePolicy(upload_limit_seconds=1.0, upload_margin_seconds=0.1)
    store = Streaming(pause_seconds=0.2)
    async with bench_on(engine, store=store, settings=settings_of(policy)) as bench:
        answer = await fetch(bench)
        row = await lease(bench)
        assert (row["activated_at"] - row["granted_at"]).total_seconds() > 1.0
        assert row["state"] == "active"
        assert len(bench.pack(answer)["objects"]) == _OBJECTS


async def test_a_put_that_stands_still_is_given_up(engine: AsyncEngine) -> None:
    """However long the build has been kept before, and before its own cleanup."""
    policy = LeasePolicy(upload_limit_seconds=1.0, upload_margin_seconds=0.3)
    ended: list[datetime] = []

    class Stopping(Streaming):
        async def put(self, key: str, data: bytes | AsyncIterator[bytes]) -> None:
            try:
                await super().put(key, data)
            except asyncio.CancelledError:
                row = await lease(bench)
                now = await bench.database.fetchrow("SELECT clock_timestamp() AS now")
                ended.extend((row["delete_at"], now["now"]))  # type: ignore[index]
                raise

    store = Stopping("stop")
    async with bench_on(engine, store=store, settings=settings_of(policy)) as bench:
        with pytest.raises(StoreUnavailable):
            await fetch(bench)
        delete_at, now = ended
        assert 0 < (delete_at - now).total_seconds() <= 0.3
        await reaped(bench)
        assert bench.transient() == []
