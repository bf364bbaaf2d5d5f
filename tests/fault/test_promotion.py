"""The database is frozen, or dies and a standby takes its place without the newest commits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from gateway.embedded_postgres import EmbeddedPostgres
from leases.clock import SystemClock
from leases.engine import LeaseEngine
from leases.errors import Failure
from leases.ids import mpack_id_time
from leases.model import LeaseState
from leases.owner import OWNER_KEY, Ownership
from tests.databases import TEMPLATE, cloned
from tests.fakes import ListingStore
from tests.fault.proxy import DatabaseProxy, proxied, socket_of
from tests.fault.standby import caught_up, frozen, promote, standby_of
from tests.invariants import check_invariants
from tests.leasing import (
    CALLER,
    QUICK,
    another_database,
    engine_on,
    granted,
    granted_many,
    loaded,
    reserved,
    until,
    until_reclaimed,
)

# An orphan goes when no promise can hold any more, and a reconcile finds it.
LIFE_SECONDS = 4.0
RECONCILE_SECONDS = 0.4
POLICY = replace(
    QUICK,
    ttl_default_seconds=LIFE_SECONDS,
    lease_life_max_seconds=LIFE_SECONDS,
    reconcile_interval_seconds=RECONCILE_SECONDS,
)
WRITES_AGAIN_SECONDS = 2.0


@asynccontextmanager
async def gateway_through(
    url: str, store: ListingStore
) -> AsyncIterator[tuple[DatabaseProxy, LeaseEngine]]:
    """An engine that works by itself, behind an address that may lead elsewhere one day."""
    async with (
        proxied(url) as (proxy, through),
        another_database(through) as database,
        engine_on(database, store, POLICY, watch=True) as engine,
    ):
        yield proxy, engine


async def can_write(engine: LeaseEngine) -> bool:
    try:
        await reserved(engine)
    except Failure:
        return False
    return True


@pytest.mark.timeout(120)
async def test_a_promotion_that_lost_the_newest_commits_is_noticed(
    primary: EmbeddedPostgres, standby_folder: Path
) -> None:
    store = ListingStore()
    async with (
        standby_of(primary, standby_folder) as (standby, shipping),
        gateway_through(primary.url(TEMPLATE), store) as (address, engine),
    ):
        kept = await granted(engine, ttl_seconds=LIFE_SECONDS)
        await caught_up(primary, standby)
        shipping.loses = lambda _shipped: True
        lost = await granted(engine, ttl_seconds=LIFE_SECONDS)
        await engine.owner.check()  # The mark names an event that the standby never saw.
        primary.kill()
        await promote(standby)
        address.target = socket_of(standby.url())
        await until(lambda: can_write(engine), WRITES_AGAIN_SECONDS)
        await until(lambda: is_paused(engine))
        assert lost.storage_key in store.blobs
        found, _now = await engine.lessor.load(lost.mpack_id)
        assert found is None or found.state is LeaseState.RESERVED, "its activation was lost"

        await engine.owner.adopt(caller=CALLER)
        free_at = mpack_id_time(lost.mpack_id) + timedelta(seconds=LIFE_SECONDS)
        await until(lambda: is_gone(store, lost.storage_key), LIFE_SECONDS + 5)
        late = SystemClock().now() - free_at
        assert timedelta() <= late <= timedelta(seconds=2 * RECONCILE_SECONDS + 1)
        await until_reclaimed(engine, await loaded(engine, kept))
        await until(lambda: nothing_is_left(store))
        await until(lambda: all_are_closed(engine))
        await check_invariants(engine.database, store, policy=POLICY)


async def is_paused(engine: LeaseEngine) -> bool:
    return engine.owner.state is Ownership.PAUSED


async def is_gone(store: ListingStore, key: str) -> bool:
    return key not in store.blobs


async def nothing_is_left(store: ListingStore) -> bool:
    return set(store.blobs) == {OWNER_KEY}


async def all_are_closed(engine: LeaseEngine) -> bool:
    row = await engine.database.fetchrow(
        "SELECT count(*) AS open FROM mpack_leases"
        " WHERE state = 'active' OR state = 'reserved' AND delete_at < clock_timestamp()"
    )
    return row is not None and row["open"] == 0


async def test_a_frozen_database_delays_and_breaks_nothing(primary: EmbeddedPostgres) -> None:
    """Deadlines pass while it stands still; thawed, everything goes once; nothing went early."""
    store = ListingStore()
    with cloned(primary) as url:
        async with gateway_through(url, store) as (_address, engine):
            leases = await granted_many(engine, 50, ttl_seconds=0.5)
            with frozen(primary):
                await SystemClock().sleep(1.5)
                assert len(store.calls_of("delete")) == 0
            await until_reclaimed(engine, *leases)
            await check_invariants(engine.database, store, policy=POLICY)
