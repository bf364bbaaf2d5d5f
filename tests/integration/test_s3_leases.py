"""The lease machinery on a real S3 server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from gateway.storage.s3 import S3Store
from leases.clock import SystemClock
from leases.database import Database
from leases.engine import LeaseEngine
from leases.model import Trigger
from leases.owner import OWNER_KEY, Ownership
from tests.databases import NewDatabase
from tests.invariants import check_invariants
from tests.leasing import (
    BLOB,
    CALLER,
    QUICK,
    another_database,
    due,
    engine_on,
    granted,
    granted_many,
    loaded,
    reserved,
    types_of,
    until,
    until_reclaimed,
    work_of,
)
from tests.rgw import new_bucket, owner, s3_settings, server
from tests.s3_proxy import Request, answer, s3_proxied


@pytest.fixture
def bucket() -> str:
    return new_bucket()


@pytest.fixture
async def store(bucket: str) -> AsyncIterator[S3Store]:
    async with S3Store(s3_settings(bucket)) as store:
        yield store


async def test_leases_live_and_end(database: Database, store: S3Store) -> None:
    async with engine_on(database, store, watch=True) as engine:
        leases = await granted_many(engine, 30, ttl_seconds=1)
        for lease in await until_reclaimed(engine, *leases):
            assert lease.lateness_ms is not None
            assert lease.lateness_ms < 1000
        assert (await loaded(engine, leases[0])).outcome == "deleted"
        await check_invariants(database, store)


async def test_another_log_does_not_reap_in_a_used_bucket(
    database: Database, store: S3Store, new_database: NewDatabase
) -> None:
    async with engine_on(database, store) as engine:
        lease = await granted(engine)
    with new_database() as url:
        async with another_database(url) as foreign:
            await foreign.execute("UPDATE event_head SET log_id = gen_random_uuid()")
            async with engine_on(foreign, store) as stranger:
                assert stranger.owner.state is Ownership.PAUSED
    assert await store.head(lease.storage_key) is not None
    assert await store.head(OWNER_KEY) is not None


async def test_a_put_that_lands_after_its_deletion_is_found(
    database: Database, bucket: str
) -> None:
    """Its client gave up, the lease was reaped, and then the network delivered it after all."""
    held, let_go = asyncio.Event(), asyncio.Event()

    async def hold(request: Request) -> bytes | None:
        if request.method == "PUT" and OWNER_KEY not in request.path:
            held.set()
            await let_go.wait()
        return None

    async with (
        s3_proxied(server().endpoint) as proxy,
        S3Store(s3_settings(bucket, s3_endpoint=proxy.url)) as slow,
        S3Store(s3_settings(bucket)) as store,
        engine_on(database, store) as engine,
    ):
        proxy.meddle = hold
        lease = await reserved(engine)
        putting = asyncio.create_task(slow.put(lease.storage_key, BLOB))
        await held.wait()
        putting.cancel()
        await asyncio.wait([putting])
        await engine.lessor.revoke(lease.mpack_id, reason="the put timed out", caller=CALLER)
        result = await engine.reaper.sweep(Trigger.COMMAND)
        assert result.reclaimed == 1
        let_go.set()

        async def has_landed() -> bool:
            return await store.head(lease.storage_key) is not None

        await until(has_landed)
        found = await engine.reconciler.run_once()
        assert found.residue_deleted == 1
        assert not await has_landed()
        assert (await types_of(engine, lease))[-2:] == ["lease.reclaimed", "lease.residue_deleted"]
        await check_invariants(database, store)


async def test_an_unfinished_upload_goes_with_its_reservation(
    database: Database, store: S3Store, bucket: str
) -> None:
    async with engine_on(database, store) as engine:
        lease = await reserved(engine)
        owner().create_multipart_upload(Bucket=bucket, Key=lease.storage_key)
        await engine.lessor.revoke(lease.mpack_id, reason="its process died", caller=CALLER)
        await engine.reaper.sweep(Trigger.COMMAND)
        assert "Uploads" not in owner().list_multipart_uploads(Bucket=bucket)
        await check_invariants(database, store)


async def test_a_key_that_is_refused_costs_attempts_and_holds_up_no_other(
    database: Database, bucket: str
) -> None:
    """A partial failure of DeleteObjects raises nothing: only its answer tells."""
    async with (
        s3_proxied(server().endpoint) as proxy,
        S3Store(s3_settings(bucket, s3_endpoint=proxy.url)) as store,
        engine_on(database, store) as engine,
    ):
        broken, other = await granted_many(engine, 2)
        await due(database, broken)
        await due(database, other)
        body = (
            f"<DeleteResult><Deleted><Key>{other.storage_key}</Key></Deleted><Error>"
            f"<Key>{broken.storage_key}</Key><Code>AccessDenied</Code></Error></DeleteResult>"
        )

        async def partly(request: Request) -> bytes | None:
            if request.method != "POST":
                return None
            owner().delete_object(Bucket=bucket, Key=other.storage_key)
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            return (head + body).encode()

        proxy.meddle = partly
        result = await engine.reaper.sweep(Trigger.COMMAND)
        assert (result.reclaimed, result.failed) == (1, 1)
        row = await work_of(database, broken)
        assert row["attempts"] == 1
        assert "AccessDenied" in row["last_error"]


async def test_an_outage_costs_no_attempts(database: Database, bucket: str) -> None:
    async with (
        s3_proxied(server().endpoint) as proxy,
        S3Store(s3_settings(bucket, s3_endpoint=proxy.url)) as store,
        engine_on(database, store, watch=True) as engine,
    ):
        lease = await granted(engine, ttl_seconds=0.3)

        async def out(_request: Request) -> bytes | None:
            return answer(503, "SlowDown")

        proxy.meddle = out

        async def noticed() -> bool:
            return engine.reaper.circuit.is_open

        await until(noticed)
        proxy.meddle = None
        await until_reclaimed(engine, lease)
        assert (await work_of(database, lease))["attempts"] == 0
        await check_invariants(database, store)


async def test_a_frozen_server_is_known_in_seconds(database: Database, store: S3Store) -> None:
    """By default the SDK would notice after five minutes."""
    clock = SystemClock()
    async with engine_on(database, store, replace(QUICK, delete_timeout_seconds=2)) as engine:
        lease = await granted(engine)
        await due(database, lease)
        server().freeze()
        try:
            began = clock.monotonic()
            result = await engine.reaper.sweep(Trigger.COMMAND)
            assert clock.monotonic() - began < 5
        finally:
            server().thaw()
        assert (result.claimed, result.handed_back) == (1, 1)
        await until(lambda: swept(engine))
        await check_invariants(database, store)


async def swept(engine: LeaseEngine) -> bool:
    return (await engine.reaper.sweep(Trigger.COMMAND)).reclaimed == 1
