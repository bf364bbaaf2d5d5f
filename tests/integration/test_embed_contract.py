"""What `Gateway.wire_fetch_mpack` promises a host: deleted in time, once, and never in its way."""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

import gateway as gateway_package
from gateway.embed import Gateway
from gateway.errors import InvalidTtl, TooLarge
from leases.database import Database
from leases.errors import Unavailable
from leases.policy import LeasePolicy
from tests.factories import History, make_history
from tests.fakes import MemoryStore
from tests.integration.fetching import Bench, bench_on, settings_of, unpacked

TTL_SECONDS = 0.05
LATE_SECONDS_MAX = 0.1


class WatchedStore(MemoryStore):
    """Tells when a deletion has been asked for."""

    def __init__(self, *, supports_presign: bool = True) -> None:
        super().__init__(supports_presign=supports_presign)
        self.deleted = asyncio.Event()

    async def delete(self, key: str) -> None:
        try:
            await super().delete(key)
        finally:
            self.deleted.set()

    async def was_deleted(self) -> None:
        async with asyncio.timeout(10):
            await self.deleted.wait()
        self.deleted.clear()


@asynccontextmanager
async def watched(
    engine: AsyncEngine, store: WatchedStore | None = None, **pack: Any
) -> AsyncIterator[tuple[Bench, WatchedStore, History, str]]:
    store = store or WatchedStore()
    async with bench_on(engine, store=store, settings=settings_of(**pack)) as bench:
        history = make_history(5, commits=5)
        repo_id = await bench.pushed(history)
        store.calls.clear()
        yield bench, store, history, repo_id


async def reclaims(database: Database) -> dict[str, int]:
    rows = await database.fetch(
        "SELECT stream, count(*) FROM events WHERE type = 'lease.reclaimed' GROUP BY stream"
    )
    return {row["stream"]: row["count"] for row in rows}


async def settled(bench: Bench) -> None:
    """Until every lease's cleanup is recorded."""
    async with asyncio.timeout(10):
        while True:
            row = await bench.database.fetchrow(
                "SELECT count(*) FROM mpack_leases WHERE state <> 'reclaimed'"
            )
            if row is not None and row[0] == 0:
                return
            await asyncio.sleep(0.01)


def test_the_package_gives_the_gateway_when_asked() -> None:
    assert gateway_package.Gateway is Gateway
    with pytest.raises(AttributeError):
        _ = gateway_package.Nothing


async def test_the_answer_is_the_pack_behind_a_url(engine: AsyncEngine) -> None:
    async with watched(engine) as (bench, store, history, repo_id):
        before = datetime.now(UTC)
        answer = await bench.fetch(repo_id, [history.head.commit_id], ttl_seconds=60.5)
        after = datetime.now(UTC)
        (key,) = bench.transient()
        assert answer["mpack_id"] is not None
        assert key.endswith("/" + answer["mpack_id"])
        assert (
            answer["mpack_url"]
            == f"https://blobs.example/{key}?expires_in="
            + str(answer["mpack_url"]).rpartition("=")[2]
        )
        assert answer["sha256"] == hashlib.sha256(store.blobs[key]).hexdigest()
        assert answer["size_bytes"] == len(store.blobs[key])
        assert answer["expires_at"] is not None
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", answer["expires_at"])
        expires_at = datetime.fromisoformat(answer["expires_at"])
        life = timedelta(seconds=60.5)
        slack = timedelta(milliseconds=5)
        assert before + life - slack <= expires_at <= after + life + slack
        assert isinstance(answer["expires_in"], float)
        assert 59 < answer["expires_in"] <= 60.5
        assert answer["mpack"] is None


async def test_the_pack_is_deleted_once_in_time_and_not_before(engine: AsyncEngine) -> None:
    async with watched(engine) as (bench, store, history, repo_id):
        loop = asyncio.get_running_loop()
        for _ in range(5):
            store.calls.clear()
            asked_at = loop.time()
            answer = await bench.fetch(repo_id, [history.head.commit_id], ttl_seconds=TTL_SECONDS)
            (put,) = store.calls_of("put")
            await store.was_deleted()
            (delete,) = store.calls_of("delete")
            assert delete.key == put.key
            row = await bench.database.row(
                "SELECT * FROM mpack_leases WHERE mpack_id = $1", answer["mpack_id"]
            )
            assert row["expires_at"] - row["activated_at"] == timedelta(seconds=TTL_SECONDS)
            assert delete.at - asked_at >= TTL_SECONDS
            assert delete.at - put.at >= TTL_SECONDS, "deleted before its time"
            answered_late = delete.at - put.at - TTL_SECONDS
            assert answered_late <= LATE_SECONDS_MAX + 0.1, "put, activation and lateness together"
            await settled(bench)
            row = await bench.database.row(
                "SELECT * FROM mpack_leases WHERE mpack_id = $1", answer["mpack_id"]
            )
            assert row["lateness_ms"] <= LATE_SECONDS_MAX * 1000
            assert len(store.calls_of("delete")) == 1


async def test_each_stored_pack_is_deleted_exactly_once(engine: AsyncEngine) -> None:
    async with watched(engine) as (bench, store, history, repo_id):
        async with asyncio.TaskGroup() as tasks:
            for _ in range(20):
                tasks.create_task(
                    bench.fetch(repo_id, [history.head.commit_id], ttl_seconds=TTL_SECONDS)
                )
        await settled(bench)
        puts = [call.key for call in store.calls_of("put")]
        assert len(puts) == len(set(puts)) == 20, "so short a life is never shared"
        assert sorted(puts) == sorted(call.key for call in store.calls_of("delete"))
        assert set((await reclaims(bench.database)).values()) == {1}
        assert bench.transient() == []


async def test_a_deletion_that_raises_never_reaches_the_caller(engine: AsyncEngine) -> None:
    async with watched(engine) as (bench, store, history, repo_id):
        store.fail_next_deletes(1)
        answer = await bench.fetch(repo_id, [history.head.commit_id], ttl_seconds=TTL_SECONDS)
        assert answer["mpack_url"] is not None
        await store.was_deleted()
        first = store.calls_of("delete")[0].at
        await store.was_deleted()
        (_, second) = store.calls_of("delete")
        assert second.at - first >= 0.15, "the first retry leaves the store a moment"
        await settled(bench)
        assert bench.transient() == []
        assert set((await reclaims(bench.database)).values()) == {1}


async def test_without_urls_nothing_is_stored(engine: AsyncEngine) -> None:
    async with watched(engine, WatchedStore(supports_presign=False)) as (
        bench,
        store,
        history,
        repo_id,
    ):
        answer = await bench.fetch(repo_id, [history.head.commit_id], ttl_seconds=TTL_SECONDS)
        assert answer["mpack_id"] is None
        assert answer["mpack_url"] is None
        assert answer["expires_at"] is None
        assert answer["expires_in"] is None
        assert answer["mpack"] is not None
        assert answer["sha256"] == hashlib.sha256(answer["mpack"]).hexdigest()
        assert len(unpacked(answer["mpack"])["commits"]) == answer["counts"]["commits"] == 5
        assert {call.name for call in store.calls} == {"get"}
        assert await bench.database.fetch("SELECT * FROM mpack_leases") == []
        assert bench.gateway.packs.budget.bytes_held == 0


async def test_without_urls_large_packs_are_refused(engine: AsyncEngine) -> None:
    store = WatchedStore(supports_presign=False)
    async with watched(engine, store, inline_bytes_max=1000) as (bench, _, history, repo_id):
        with pytest.raises(TooLarge):
            await bench.fetch(repo_id, [history.head.commit_id])
        assert bench.store.calls == []
        assert bench.gateway.packs.budget.bytes_held == 0


async def test_one_connection_that_the_session_holds_is_enough(database_url: str) -> None:
    """The host's pool has a single connection, and the host's transaction occupies it."""
    host = create_async_engine(database_url, pool_size=1, max_overflow=0, pool_timeout=5)
    try:
        async with watched(host) as (bench, _, history, repo_id), AsyncSession(host) as session:
            await session.execute(text("CREATE TEMPORARY TABLE mine (id int)"))
            await session.execute(text("INSERT INTO mine VALUES (1)"))
            for share in (True, False):
                answer = await bench.gateway.wire_fetch_mpack(
                    session,
                    repo_id,
                    want=[history.head.commit_id],
                    have=[],
                    ttl_seconds=60,
                    share=share,
                )
                assert answer["mpack_url"] is not None
            assert session.in_transaction()
            assert (await session.execute(text("SELECT id FROM mine"))).scalars().all() == [1]
            await session.rollback()
            found = await session.execute(text("SELECT to_regclass('mine')"))
            assert found.scalar_one() is None, "the host's transaction was still open"
    finally:
        await host.dispose()


async def test_rows_that_the_host_has_not_committed_are_read(
    engine: AsyncEngine,
) -> None:
    async with watched(engine) as (bench, _, history, _), AsyncSession(engine) as session:
        await session.execute(
            text("INSERT INTO commit_refs SELECT 'uncommitted', commit_id FROM commit_refs")
        )
        answer = await bench.gateway.wire_fetch_mpack(
            session, "uncommitted", want=[history.head.commit_id], have=[], ttl_seconds=60
        )
        assert answer["counts"]["commits"] == 5
        await session.rollback()


async def test_all_reads_end_before_the_first_call_to_the_store(engine: AsyncEngine) -> None:
    async with watched(engine) as (bench, store, history, repo_id), AsyncSession(engine) as session:
        real = session.execute
        calls_seen: list[int] = []

        async def execute(*args: object, **options: object) -> object:
            calls_seen.append(len(store.calls))
            return await real(*args, **options)  # type: ignore[call-overload]

        session.execute = execute  # type: ignore[method-assign, assignment]  # the same, watched
        for have in ([], [next(iter(history.commits))]):
            store.calls.clear()
            await bench.gateway.wire_fetch_mpack(
                session, repo_id, want=[history.head.commit_id], have=have, ttl_seconds=60
            )
        assert calls_seen
        assert set(calls_seen) == {0}


@pytest.mark.parametrize("ttl_seconds", [0, -1, math.nan, math.inf, -math.inf, 86_401, 10**12])
async def test_a_life_that_cannot_be_is_refused(engine: AsyncEngine, ttl_seconds: float) -> None:
    async with watched(engine) as (bench, store, history, repo_id):
        with pytest.raises(InvalidTtl):
            await bench.fetch(repo_id, [history.head.commit_id], ttl_seconds=ttl_seconds)
        assert store.calls == []


async def test_a_store_that_fails_leaves_nothing_behind(engine: AsyncEngine) -> None:
    class Failing(WatchedStore):
        broken = False

        async def put(self, key: str, data: bytes | AsyncIterator[bytes]) -> None:
            if self.broken:
                raise OSError("no route to the store")
            await super().put(key, data)

    store = Failing()
    async with watched(engine, store) as (bench, _, history, repo_id):
        store.broken = True
        with pytest.raises(Unavailable):
            await bench.fetch(repo_id, [history.head.commit_id])
        assert bench.transient() == []
        rows = await bench.database.fetch("SELECT state FROM mpack_leases")
        assert [row["state"] for row in rows] == ["reserved"], "left to its deadline"
        assert await bench.database.fetch("SELECT * FROM pack_slots") == []
        assert bench.gateway.packs.budget.bytes_held == 0
        store.broken = False
        assert (await bench.fetch(repo_id, [history.head.commit_id]))["mpack_url"]


async def test_what_was_left_when_it_closed_is_deleted_by_the_next(engine: AsyncEngine) -> None:
    store = WatchedStore()
    async with watched(engine, store) as (bench, _, history, repo_id):
        await bench.fetch(repo_id, [history.head.commit_id], ttl_seconds=1)
        assert store.calls_of("delete") == []
    assert len([key for key in store.blobs if key.startswith("transient/")]) == 1
    async with Gateway(engine, store, settings_of(LeasePolicy())):
        await store.was_deleted()
    assert [key for key in store.blobs if key.startswith("transient/")] == []
