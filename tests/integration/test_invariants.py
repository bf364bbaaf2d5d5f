"""The invariants' own test: each breach is seen, and named."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from sqlalchemy import text

from leases.codec import JSON
from leases.database import Database
from leases.engine import LeaseEngine
from leases.ids import new_event_id
from leases.model import Trigger, storage_key
from leases.ports import BlobStore
from tests.fakes import ListingStore, MemoryStore
from tests.invariants import check_invariants, durable_snapshot
from tests.leasing import QUICK, due, engine_on, granted, note


@pytest.fixture
async def engine(database: Database, store: ListingStore) -> AsyncIterator[LeaseEngine]:
    """One reclaimed lease and one that is open."""
    async with engine_on(database, store) as engine:
        lease = await granted(engine)
        await due(database, lease)
        await engine.reaper.sweep(Trigger.COMMAND)
        await granted(engine, ttl_seconds=60)
        yield engine


async def told(database: Database, store: BlobStore, **options: object) -> str:
    with pytest.raises(AssertionError) as caught:
        await check_invariants(database, store, **options)  # type: ignore[arg-type]
    return str(caught.value)


@pytest.mark.parametrize("store", [ListingStore(), MemoryStore()], ids=["lists", "does not list"])
async def test_a_sound_run_passes(engine: LeaseEngine, store: MemoryStore) -> None:
    await check_invariants(engine.database, store)


async def test_an_early_deletion_is_seen(engine: LeaseEngine, store: ListingStore) -> None:
    lease = await granted(engine, ttl_seconds=60)
    await store.delete(lease.storage_key)
    problems = await told(engine.database, store)
    assert f"I1: {lease.storage_key} was deleted" in problems
    assert f"I2: {lease.storage_key} is gone" in problems


async def test_a_blob_of_a_closed_lease_is_seen(engine: LeaseEngine, store: ListingStore) -> None:
    (call,) = store.calls_of("delete")
    await store.put(call.key, b"back")
    assert f"I2: {call.key} is there" in await told(engine.database, store)


async def test_a_blob_without_a_row_is_seen(engine: LeaseEngine, store: ListingStore) -> None:
    key = storage_key(engine.log_id, "x")
    await store.put(key, b"x")
    assert f"I4: {key}" in await told(engine.database, store, at_rest=False)


async def test_a_second_reclaim_is_seen(engine: LeaseEngine, store: ListingStore) -> None:
    (call,) = store.calls_of("delete")
    stream = "lease/" + call.key.rpartition("/")[2]
    last = (await engine.log.read_stream(stream))[-1]
    again = note(stream, expected=last.version, type=last.type, event_id=new_event_id())
    fields: dict[str, JSON] = {
        "outcome": "deleted",
        "trigger": "alarm",
        "reclaimed_at": "2026-01-01T00:00:00.000000Z",
        "lateness_ms": 1,
    }
    await engine.log.append([replace(again, data=fields)])
    problems = await told(engine.database, store)
    assert "I3: " in problems
    assert "had lease.reclaimed after its end" in problems


async def test_changed_durable_bytes_are_seen(engine: LeaseEngine, store: ListingStore) -> None:
    await store.put("segments/a", b"a")
    await store.put("segments/b", b"b")
    before = await durable_snapshot(store)
    await check_invariants(engine.database, store, durable=before)
    await store.put("segments/a", b"other")
    await store.delete("segments/b")
    problems = await told(engine.database, store, durable=before)
    assert "I6: durable blobs changed: ['segments/a', 'segments/b']" in problems


async def test_a_wrong_row_is_seen_by_both_folds(engine: LeaseEngine, store: ListingStore) -> None:
    await engine.database.execute("UPDATE mpack_leases SET repo_id = 'other'")
    problems = await told(engine.database, store)
    assert "differs from the log" in problems
    assert "repo_id is 'other' in the table" in problems


async def test_an_open_claim_is_seen_at_rest(engine: LeaseEngine, store: ListingStore) -> None:
    await engine.database.execute(
        "UPDATE mpack_leases SET claimed_by = 'free.x' WHERE state = 'active'"
    )
    assert "I11: " in await told(engine.database, store)
    await check_invariants(engine.database, store, at_rest=False)


async def test_an_idle_transaction_is_seen_at_rest(
    engine: LeaseEngine, store: ListingStore
) -> None:
    async with engine.database.engine.connect() as connection:
        await connection.execute(text("SELECT 42"))
        assert "sits in a transaction: SELECT 42" in await told(engine.database, store)


async def test_a_life_that_is_too_long_is_seen(engine: LeaseEngine, store: ListingStore) -> None:
    policy = replace(QUICK, lease_life_max_seconds=10)
    assert "I8: " in await told(engine.database, store, policy=policy)
