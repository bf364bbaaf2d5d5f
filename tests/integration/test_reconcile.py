"""The transient prefix against the lease table, both ways."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from leases.database import Database
from leases.engine import LeaseEngine
from leases.ids import mpack_id_time, new_mpack_id
from leases.lessor import Caller
from leases.model import Lease, LeaseKind, LeaseState, Outcome, Trigger, storage_key
from leases.reconcile import Finding, Verdict, judge
from tests.fakes import ListingStore, MemoryStore
from tests.invariants import check_invariants
from tests.leasing import (
    due,
    engine_on,
    granted,
    loaded,
    reserved,
    types_of,
)

MPACK_ID = "0196f0c0a1b27abc8abcdef012345678"
KEY = storage_key("log", MPACK_ID)


@pytest.fixture
async def engine(database: Database, store: ListingStore) -> AsyncIterator[LeaseEngine]:
    async with engine_on(database, store) as engine:
        yield engine


def _lease(state: LeaseState, outcome: Outcome | None = None) -> Lease:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    return Lease(
        mpack_id=MPACK_ID,
        kind=LeaseKind.PACK,
        repo_id="repo-1",
        storage_key=KEY,
        state=state,
        outcome=outcome,
        granted_at=moment,
        delete_at=moment,
        version=1,
    )


@pytest.mark.parametrize(
    "key, lease, verdict",
    [
        (KEY, None, Verdict.ADOPT),
        (KEY, _lease(LeaseState.ACTIVE), Verdict.EXPECTED),
        (KEY, _lease(LeaseState.RESERVED), Verdict.EXPECTED),
        (KEY, _lease(LeaseState.RECLAIMED, Outcome.DELETED), Verdict.RESIDUE),
        (KEY, _lease(LeaseState.RECLAIMED, Outcome.FORGOTTEN), Verdict.FORGOTTEN),
        (storage_key("other", MPACK_ID), None, Verdict.FOREIGN),
        (f"{KEY}/part", None, Verdict.FOREIGN),
        (storage_key("log", "x"), None, Verdict.FOREIGN),
        (f"transient/{MPACK_ID}", None, Verdict.FOREIGN),
        ("transient/", None, Verdict.FOREIGN),
    ],
)
def test_judge(key: str, lease: Lease | None, verdict: Verdict) -> None:
    assert judge(key, log_id="log", lease=lease) is verdict


async def test_all_is_well(engine: LeaseEngine, store: ListingStore) -> None:
    await granted(engine, ttl_seconds=60)
    await reserved(engine)
    result = await engine.reconciler.run_once()
    assert (result.listed, result.adopted, result.residue_deleted) == (2, 0, 0)
    assert result.findings == []


async def test_a_blob_that_came_back_is_deleted_and_told(
    engine: LeaseEngine, store: ListingStore
) -> None:
    """A PUT that timed out may land after its deletion."""
    lease = await granted(engine)
    await due(engine.database, lease)
    await engine.reaper.sweep(Trigger.COMMAND)
    await store.put(lease.storage_key, b"late")
    ended = await loaded(engine, lease)
    assert (await engine.reconciler.run_once()).residue_deleted == 1
    assert lease.storage_key not in store.blobs
    assert (await types_of(engine, lease))[-2:] == ["lease.reclaimed", "lease.residue_deleted"]
    assert (await loaded(engine, lease)).outcome == ended.outcome
    await check_invariants(engine.database, store)


async def test_a_blob_reaped_between_the_listing_and_the_look_is_no_residue(
    engine: LeaseEngine, store: ListingStore
) -> None:
    """The listing is older than the row's end: it proves nothing."""
    lease = await granted(engine)
    await due(engine.database, lease)
    listing = store.list

    async def slow_list(prefix: str) -> AsyncIterator[object]:
        infos = [info async for info in listing(prefix)]
        await engine.reaper.sweep(Trigger.COMMAND)
        for info in infos:
            yield info

    store.list = slow_list  # type: ignore[method-assign, assignment]
    assert (await engine.reconciler.run_once()).residue_deleted == 0
    assert (await types_of(engine, lease))[-1] == "lease.reclaimed"


async def test_a_blob_without_a_row_is_adopted_for_the_longest_life(
    engine: LeaseEngine, store: ListingStore
) -> None:
    """The database lost its tail: somebody may hold this URL."""
    mpack_id = new_mpack_id()
    key = storage_key(engine.log_id, mpack_id)
    await store.put(key, b"lost")
    store.modified_at[key] = mpack_id_time(mpack_id) - timedelta(hours=1)  # The store's clock.
    assert (await engine.reconciler.run_once()).adopted == 1
    found, _now = await engine.lessor.load(mpack_id)
    assert found is not None
    assert found.delete_at == mpack_id_time(mpack_id) + timedelta(days=1)
    assert (await engine.reconciler.run_once()).adopted == 0
    await check_invariants(engine.database, store)


@pytest.mark.parametrize("slow", [timedelta(minutes=15), timedelta(seconds=300)])
async def test_an_id_made_too_early_ends_no_promise_early(
    engine: LeaseEngine, store: ListingStore, slow: timedelta
) -> None:
    """By a process whose clock is slow, or long before its pack was planned: the reservation came
    after it, and the life of the lost lease was counted from there.
    """
    reserved_at = (await engine.log.head())["now"].replace(microsecond=0) - timedelta(seconds=5)
    made_at = reserved_at - slow
    mpack_id = f"{int(made_at.timestamp() * 1000):012x}" + new_mpack_id()[12:]
    key = storage_key(engine.log_id, mpack_id)
    await store.put(key, b"lost")
    # Stores tell whole seconds; the reservation was somewhere in this one.
    store.modified_at[key] = reserved_at
    assert (await engine.reconciler.run_once()).adopted == 1
    found, now = await engine.lessor.load(mpack_id)
    assert found is not None
    promised_at_most = reserved_at + timedelta(days=1, seconds=0.999)
    assert promised_at_most <= found.delete_at <= now + timedelta(days=1)


async def test_keys_that_do_not_parse_and_other_logs_blobs_are_findings(
    engine: LeaseEngine, store: ListingStore
) -> None:
    foreign = [
        "transient/readme.txt",
        f"transient/{engine.log_id}/notes",
        storage_key("00000000-0000-4000-8000-000000000000", new_mpack_id()),
    ]
    for key in foreign:
        await store.put(key, b"theirs")
    result = await engine.reconciler.run_once()
    assert sorted(result.findings) == sorted((Finding.FOREIGN_KEY, key) for key in foreign)
    assert set(foreign) <= store.blobs.keys()


async def test_one_id_below_two_logs_is_two_blobs(engine: LeaseEngine, store: ListingStore) -> None:
    """A copied bucket."""
    mpack_id = new_mpack_id()
    own = storage_key(engine.log_id, mpack_id)
    theirs = [storage_key(other, mpack_id) for other in ("0", "f" * 32)]
    for key in (own, *theirs):
        await store.put(key, b"x")
    result = await engine.reconciler.run_once()
    assert (result.adopted, result.findings_count) == (1, 2)


async def test_a_forgotten_leases_blob_is_a_finding(
    engine: LeaseEngine, store: ListingStore
) -> None:
    lease = await granted(engine)
    await due(engine.database, lease)
    await engine.lessor.forget(lease.mpack_id, reason="test", caller=Caller(actor="operator"))
    result = await engine.reconciler.run_once()
    assert result.findings == [(Finding.FORGOTTEN_BLOB, lease.storage_key)]
    assert lease.storage_key in store.blobs
    await check_invariants(engine.database, store)


async def test_an_active_lease_without_its_blob_is_a_finding(
    engine: LeaseEngine, store: ListingStore
) -> None:
    lease = await granted(engine, ttl_seconds=60)
    del store.blobs[lease.storage_key]
    result = await engine.reconciler.run_once()
    assert result.findings == [(Finding.BLOB_MISSING, lease.storage_key)]
    assert (await loaded(engine, lease)).state is LeaseState.ACTIVE


async def test_a_blob_that_is_gone_before_its_record_is_no_finding(
    engine: LeaseEngine, store: ListingStore
) -> None:
    """A worker has deleted it, and is about to say so."""
    lease = await granted(engine)
    del store.blobs[lease.storage_key]
    await due(engine.database, lease)
    assert (await engine.reconciler.run_once()).findings == []
    assert (await loaded(engine, lease)).state is LeaseState.ACTIVE


async def test_all_findings_are_counted_and_a_hundred_told(
    engine: LeaseEngine, store: ListingStore
) -> None:
    for number in range(120):
        await store.put(f"transient/{number}", b"x")
    result = await engine.reconciler.run_once()
    assert (result.findings_count, len(result.findings)) == (120, 100)


async def test_a_store_that_cannot_list_is_left_alone(database: Database) -> None:
    async with engine_on(database, MemoryStore()) as engine:
        assert (await engine.reconciler.run_once()).listed == 0


@pytest.mark.parametrize("durable", ["segments/x", "transient"])
async def test_nothing_outside_the_prefix_is_ever_looked_at(
    engine: LeaseEngine, store: ListingStore, durable: str
) -> None:
    await store.put(durable, b"durable")
    result = await engine.reconciler.run_once()
    assert (result.listed, result.findings_count) == (1, 0)
