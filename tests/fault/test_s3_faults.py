"""Each fault of an S3 server, as the tools make it, and that no lease is the worse for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import httpx2
import pytest

from gateway.storage.s3 import S3Store
from leases.clock import SystemClock
from leases.database import Database
from leases.engine import LeaseEngine
from leases.errors import StoreUnavailable
from leases.model import Trigger
from leases.ports import DeleteOutcome
from tests.fault.s3_faults import (
    FAULTS,
    Held,
    error_after_success,
    error_inside_200,
    is_bulk_delete,
    on,
    only_if,
    partial_delete,
    reset_after,
    reset_before,
    slow_down,
    truncated_body,
)
from tests.fault.wall_clock import WallClock
from tests.invariants import check_invariants
from tests.leasing import (
    BLOB,
    QUICK,
    due,
    engine_on,
    forget_attempts_pause,
    granted,
    granted_many,
    loaded,
    reserved,
    until,
    until_reclaimed,
    work_of,
)
from tests.rgw import new_bucket, owner, s3_settings, server
from tests.s3_proxy import Fault, S3Proxy, s3_proxied

KEY = "transient/log/a-blob"
# Everything that is waited for is short; the store's own clients keep their limits.
BRIEF = replace(
    QUICK,
    delete_timeout_seconds=0.5,
    circuit_pause_seconds=0.05,
    circuit_pause_seconds_max=0.1,
    circuit_probe_seconds=0.3,
    retry_first_seconds=0.05,
)
GHOSTS = 100
_PUTS_AT_ONCE = 50


@pytest.fixture
def bucket() -> str:
    return new_bucket()


@pytest.fixture
async def proxy() -> AsyncIterator[S3Proxy]:
    async with s3_proxied(server().endpoint) as proxy:
        yield proxy


@pytest.fixture
async def store(bucket: str, proxy: S3Proxy) -> AsyncIterator[S3Store]:
    async with S3Store(s3_settings(bucket, s3_endpoint=proxy.url)) as store:
        yield store


def keys_in(bucket: str, prefix: str = "") -> set[str]:
    """What the server holds, past the proxy."""
    pages = owner().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return {item["Key"] for page in pages for item in page.get("Contents", ())}


def delete_past_the_proxy(bucket: str, keys: Sequence[str]) -> None:
    for key in keys:
        owner().delete_object(Bucket=bucket, Key=key)


# The tools. --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault, is_there",
    [
        (slow_down, False),
        (reset_before, False),
        (error_after_success, True),
        (reset_after, True),
    ],
    ids=["slow down", "reset before", "error after success", "reset after"],
)
async def test_a_put_fails_before_or_after_it_is_done(
    store: S3Store, proxy: S3Proxy, bucket: str, fault: Fault, *, is_there: bool
) -> None:
    proxy.fault = fault
    with pytest.raises(StoreUnavailable):
        await store.put(KEY, BLOB)
    assert (KEY in keys_in(bucket)) == is_there
    assert len(proxy.requests) >= 3, "the builder's client tries again, then says so"


@pytest.mark.parametrize("fault", [truncated_body, error_inside_200, reset_after])
async def test_an_answer_that_is_none_is_not_believed(
    store: S3Store, proxy: S3Proxy, fault: Fault
) -> None:
    await store.put(KEY, BLOB * 1000)
    proxy.fault = fault
    outcomes = await store.delete_many([KEY])
    assert isinstance(outcomes[KEY], StoreUnavailable)


async def test_a_body_that_breaks_off_is_no_blob(store: S3Store, proxy: S3Proxy) -> None:
    await store.put(KEY, BLOB * 1000)
    proxy.fault = truncated_body
    with pytest.raises(StoreUnavailable):
        await store.get(KEY)


async def test_some_keys_of_a_bulk_deletion_fail(
    store: S3Store, proxy: S3Proxy, bucket: str
) -> None:
    keys = [f"{KEY}-{number}" for number in range(6)]
    for key in keys:
        await store.put(key, BLOB)
    proxy.fault = partial_delete(
        lambda key: key.endswith(("1", "4")), lambda gone: delete_past_the_proxy(bucket, gone)
    )
    outcomes = await store.delete_many(keys)
    failed = {key for key, outcome in outcomes.items() if outcome is not DeleteOutcome.DELETED}
    assert failed == {f"{KEY}-1", f"{KEY}-4"} == keys_in(bucket, KEY)
    assert all(isinstance(outcomes[key], StoreUnavailable) for key in failed)


async def test_signed_urls_are_good_through_the_proxy(store: S3Store, proxy: S3Proxy) -> None:
    """A fault of the gateway's own calls leaves those who hold URLs alone."""
    await store.put(KEY, BLOB)
    proxy.fault = on("PUT POST DELETE", slow_down)
    url = await store.presign_get(KEY, expires_in=60)
    async with httpx2.AsyncClient(trust_env=False) as http:
        assert (await http.get(url)).content == BLOB
        assert (await http.get(url + "0")).status_code == 403


# Leases. -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAULTS)
async def test_no_fault_of_deletions_costs_an_attempt_or_a_second_record(
    database: Database, store: S3Store, proxy: S3Proxy, name: str
) -> None:
    async with engine_on(database, store, BRIEF, watch=True) as engine:
        leases = await granted_many(engine, 12, ttl_seconds=0.3)
        proxy.fault = on("POST DELETE", FAULTS[name])

        async def is_known() -> bool:
            return engine.reaper.circuit.is_open

        await until(is_known)
        sent = len(proxy.requests)
        await engine.clock.sleep(0.5)
        assert len(proxy.requests) - sent <= 8, "one probe at a time, no storm"
        proxy.fault = None
        await until_reclaimed(engine, *leases)
        for lease in leases:
            assert (await work_of(database, lease))["attempts"] == 0
    await check_invariants(database, store)


async def test_a_replica_whose_clock_the_store_refuses_costs_no_attempt(
    database: Database, store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says nothing about a blob; others delete it, or this one when its clock is right again."""
    wrong = WallClock()
    wrong.mislead_signing(monkeypatch)
    async with engine_on(database, store, BRIEF, watch=True) as engine:
        leases = await granted_many(engine, 12, ttl_seconds=0.3)
        wrong.shift = timedelta(minutes=20)

        async def is_known() -> bool:
            return engine.reaper.circuit.is_open

        await until(is_known)
        wrong.shift = timedelta()
        await until_reclaimed(engine, *leases)
        for lease in leases:
            assert (await work_of(database, lease))["attempts"] == 0
    await check_invariants(database, store)


async def test_one_key_that_fails_for_ever_is_stuck_and_stops_nobody(
    database: Database, store: S3Store, proxy: S3Proxy
) -> None:
    """Whatever its failures look like: here its whole request is never answered."""
    policy = replace(BRIEF, stuck_after_attempts=2, retry_factor=1)
    async with engine_on(database, store, policy, watch=True) as engine:
        cursed, *others = await granted_many(engine, 8, ttl_seconds=0.2)
        proxy.fault = only_if(
            lambda request: is_bulk_delete(request) and cursed.storage_key.encode() in request.body,
            FAULTS["black hole"],
        )
        await until_reclaimed(engine, *others)
        later = [await granted(engine) for _ in range(3)]
        await until_reclaimed(engine, *later)

        async def is_stuck() -> bool:
            return (await loaded(engine, cursed)).stuck

        await until(is_stuck)
        assert not engine.reaper.circuit.is_open
        proxy.fault = None
        await until_reclaimed(engine, cursed)
    await check_invariants(database, store)


async def test_keys_that_fail_within_an_answered_batch_are_deleted_by_themselves(
    database: Database, store: S3Store, proxy: S3Proxy, bucket: str
) -> None:
    async with engine_on(database, store, BRIEF) as engine:
        leases = await granted_many(engine, 10)
        for lease in leases:
            await due(database, lease)
        bad = {lease.storage_key for lease in leases[:3]}
        proxy.fault = partial_delete(
            bad.__contains__, lambda gone: delete_past_the_proxy(bucket, gone)
        )
        result = await engine.reaper.reap_once(Trigger.COMMAND)
        assert (result.reclaimed, result.handed_back, result.failed) == (7, 3, 0)
        proxy.fault = None
        await forget_attempts_pause(database)
        before = len(proxy.requests)
        assert (await engine.reaper.reap_once(Trigger.COMMAND)).reclaimed == 3
        assert len(proxy.requests) - before == 4, "a probe, then each by itself"
    await check_invariants(database, store)


# PUTs that land after their deletion. ------------------------------------------------------------


async def test_blobs_that_land_after_their_deletion_are_gone_after_one_reconcile(
    database: Database, store: S3Store, proxy: S3Proxy, bucket: str
) -> None:
    """Each PUT times out, its lease is reaped, and then the PUT reaches the server after all."""
    brief = replace(QUICK, upload_limit_seconds=0.2, upload_margin_seconds=0.1)
    async with engine_on(database, store, brief) as engine:
        held = Held()
        proxy.fault = on("PUT", held)
        leases = []
        for _ in range(0, GHOSTS, _PUTS_AT_ONCE):
            wave = [await reserved(engine) for _ in range(_PUTS_AT_ONCE)]
            leases += wave
            putting = [asyncio.ensure_future(store.put(one.storage_key, BLOB)) for one in wave]
            await held.has(len(leases))
            await _given_up(putting)
        for lease in leases:
            await due(database, lease)
        swept = await engine.reaper.sweep(Trigger.COMMAND)
        assert swept.reclaimed == GHOSTS
        held.release()

        async def have_landed() -> bool:
            return len(keys_in(bucket, "transient/")) == GHOSTS + 1  # And the owner's mark.

        await until(have_landed)
        proxy.fault = None
        found = await engine.reconciler.run_once()
        assert (found.residue_deleted, found.findings_count) == (GHOSTS, 0)
        assert len(keys_in(bucket, "transient/")) == 1
    await check_invariants(database, store)


async def _given_up(putting: Sequence[asyncio.Future[Any]]) -> None:
    for one in putting:
        one.cancel()
    await asyncio.wait(putting)


async def test_a_store_that_was_frozen_in_the_midst_of_puts_is_reconciled(
    database: Database, bucket: str
) -> None:
    """SIGSTOP, for real: which PUTs land late is the kernel's affair; none of them stays."""
    brief = replace(
        BRIEF, upload_limit_seconds=0.6, upload_margin_seconds=0.1, delete_timeout_seconds=2
    )
    async with S3Store(s3_settings(bucket)) as store, engine_on(database, store, brief) as engine:
        leases = [await reserved(engine) for _ in range(20)]
        server().freeze()
        try:
            putting = [asyncio.ensure_future(store.put(one.storage_key, BLOB)) for one in leases]
            await SystemClock().sleep(0.3)
            await _given_up(putting)
        finally:
            server().thaw()
        for lease in leases:
            await due(database, lease)
        await until(lambda: _all_reclaimed(engine))
        await engine.reconciler.run_once()
        assert len(keys_in(bucket, "transient/")) == 1
        await check_invariants(database, store)


async def _all_reclaimed(engine: LeaseEngine) -> bool:
    await engine.reaper.sweep(Trigger.COMMAND)
    row = await engine.database.fetchrow(
        "SELECT count(*) AS open FROM mpack_leases WHERE state <> 'reclaimed'"
    )
    return row is not None and row["open"] == 0
