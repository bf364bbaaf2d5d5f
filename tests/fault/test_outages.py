"""The database or the store goes away for a while: nothing early, nothing lost, nothing twice."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.embedded_postgres import EmbeddedPostgres
from leases.chain import StoredEvent
from leases.clock import SystemClock
from leases.database import Database
from leases.engine import LeaseEngine
from leases.errors import Failure, StoreUnavailable
from tests.databases import cloned
from tests.fakes import ListingStore
from tests.fault.processes import Gateways, gateways_on
from tests.fault.proxy import COMMITTED, proxied
from tests.fault.scene import (
    all_are_gone,
    all_are_reclaimed,
    grant_together,
    inside,
    sweep_once_and_check,
    transient_blobs,
)
from tests.fault.servers import own_postgres
from tests.fault.watching import BlobWatch, DatabaseTime
from tests.invariants import check_invariants
from tests.leasing import (
    QUICK,
    another_database,
    connection_to,
    engine_on,
    granted,
    loaded,
    reserved,
    until,
    until_reclaimed,
)


async def test_a_blob_that_answers_like_an_outage_holds_up_no_other(database: Database) -> None:
    store = ListingStore()
    policy = replace(QUICK, retry_first_seconds=0.05, stuck_after_attempts=3)
    async with engine_on(database, store, policy, watch=True) as engine:
        broken = await granted(engine)

        async def refuse(key: str) -> None:
            if key == broken.storage_key:
                raise StoreUnavailable

        store.on_delete = refuse

        async def is_stuck() -> bool:
            return (await loaded(engine, broken)).stuck

        await until(is_stuck)
        assert not engine.reaper.circuit.is_open
        others = [await granted(engine) for _ in range(3)]
        for lease in await until_reclaimed(engine, *others):
            assert lease.lateness_ms is not None
            assert lease.lateness_ms < 3000
        store.on_delete = None
        await until_reclaimed(engine, broken)
    await check_invariants(database, store)


@pytest.fixture
def own_server() -> Iterator[EmbeddedPostgres]:
    """A server that may be crashed; the others' is not touched."""
    with own_postgres() as server:
        yield server


@pytest.mark.parametrize("when", ["before the deadline", "in the midst of the reap"])
async def test_the_database_crashes_and_comes_back(
    own_server: EmbeddedPostgres, tmp_path: Path, when: str
) -> None:
    count = 600
    with cloned(own_server) as url:
        async with gateways_on(url, tmp_path) as gateways:
            gateway = await gateways.start()
            async with inside(gateways) as service:
                keys, due_at = await grant_together(service, count, due_in_seconds=1.5)
                time = await DatabaseTime.read(service.database)
            with BlobWatch(gateways.view) as watch:
                if when == "before the deadline":
                    own_server.kill()
                    await SystemClock().sleep((due_at - time.now).total_seconds() + 0.5)
                    assert len(transient_blobs(gateways)) == count  # Nobody knew that it was time.
                else:
                    await until(lambda: some_are_gone(gateways, count))
                    own_server.kill()
                    await SystemClock().sleep(0.5)
                own_server.start()
                await until(lambda: all_are_gone(gateways), 15)
            watch.check_in_time(keys, due_at, time, late_seconds_max=15)
            await until(gateway.is_ready)
            async with inside(gateways) as service:
                await until(lambda: all_are_reclaimed(service, count), 15)
                await sweep_once_and_check(service)
            gateways.end()


async def some_are_gone(gateways: Gateways, count: int) -> bool:
    return len(transient_blobs(gateways)) < count


async def test_cut_connections_lose_and_double_no_event(
    database: Database, database_url: str
) -> None:
    """Whoever was told that it is done finds it once; whoever was told nothing, at most once."""
    done: list[str] = []
    unsure = 0
    ended = asyncio.Event()
    async with engine_on(database, ListingStore()) as engine, connection_to(database_url) as other:

        async def write() -> None:
            nonlocal unsure
            while not ended.is_set():
                try:
                    done.append((await reserved(engine)).mpack_id)
                except Failure:
                    unsure += 1

        async with asyncio.TaskGroup() as tasks:
            for _ in range(16):
                tasks.create_task(write())
            cuts = 0
            while cuts < CUTS:
                cuts += await other.fetchval(_TERMINATE_OTHERS)
                await SystemClock().sleep(0.1)
            ended.set()
        assert done
    async with another_database(database_url) as whole, engine_on(whole, ListingStore()) as engine:
        await only_these(engine, done, unsure=unsure)
        await check_invariants(whole, engine.store, at_rest=False)


CUTS = 20
_TERMINATE_OTHERS = """
SELECT count(pg_terminate_backend(pid)) AS ended FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()"""


async def test_a_lost_answer_to_a_commit_is_found_out(database_url: str) -> None:
    """The append stands, but nobody heard: it is sent again, recognised, and not made twice."""
    lost = repeats = 0

    def loses(answer: bytes) -> bool:
        nonlocal lost, repeats
        repeats += answer.count(b"\x00\x00\x00\x06repeat")
        if b"\x00\x00\x00\x02ok" in answer and answer.endswith(COMMITTED) and seen() % 5 == 0:
            lost += 1
            return True
        return False

    seen = itertools.count(1).__next__
    async with proxied(database_url) as (proxy, url), another_database(url) as database:
        async with engine_on(database, ListingStore()) as engine:
            proxy.loses = loses
            done = [(await reserved(engine)).mpack_id for _ in range(50)]
            proxy.loses = lambda _answer: False
            assert lost >= 10
            assert repeats >= lost
            await only_these(engine, done, unsure=0)
        await check_invariants(database, engine.store, at_rest=False)


async def only_these(engine: LeaseEngine, done: list[str], *, unsure: int) -> None:
    """Every reservation that was confirmed is in the log once, and not many others are."""
    events: list[StoredEvent] = []
    while page := await engine.log.read(after=len(events), limit=1000):
        events += page
    recorded = Counter(event.stream.removeprefix("lease/") for event in events)
    assert set(recorded.values()) == {1}
    assert set(done) <= set(recorded)
    assert len(recorded) <= len(done) + unsure


async def test_a_store_that_is_away_costs_no_attempts(gateways: Gateways) -> None:
    gateway = await gateways.start()
    async with inside(gateways) as service:
        keys, due_at = await grant_together(service, 50, due_in_seconds=1)
        time = await DatabaseTime.read(service.database)

    async def was_missed() -> bool:
        return len(gateway.said("store_out")) >= 2

    with BlobWatch(gateways.view) as watch:
        with gateways.view.away():
            await until(was_missed)
            readiness = (await gateway.call("GET", "/readyz")).body
            assert readiness["checks"]["reaping"]["circuit"] == "open"
        await until(lambda: all_are_gone(gateways))
    watch.check_in_time(keys, due_at, time, late_seconds_max=10)
    async with inside(gateways) as service:
        await until(lambda: all_are_reclaimed(service, len(keys)))
        row = await service.database.fetchrow(
            "SELECT max(attempts) AS attempts, (SELECT count(*) FROM events"
            " WHERE type IN ('lease.cleanup_failed', 'lease.stuck')) AS failures FROM mpack_leases"
        )
        assert dict(row or {}) == {"attempts": 0, "failures": 0}
        await sweep_once_and_check(service)
