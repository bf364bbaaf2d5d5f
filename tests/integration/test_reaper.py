"""Reaping: nothing early, nothing twice, nothing forgotten, whatever the store does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from leases.claims import CLAIM
from leases.clock import SystemClock
from leases.database import Database
from leases.engine import LeaseEngine
from leases.errors import StoreUnavailable
from leases.model import Lease, LeaseState, Outcome, Trigger
from leases.ports import DeleteOutcome
from tests.fakes import ListingStore, MemoryStore
from tests.invariants import check_invariants
from tests.leasing import (
    CALLER,
    QUICK,
    another_database,
    due,
    due_lease,
    engine_on,
    forget_attempts_pause,
    granted,
    granted_many,
    loaded,
    reap,
    reserved,
    types_of,
    until,
    until_reclaimed,
    work_of,
)

BROKEN = RuntimeError("https://blobs.example/?X-Amz-Signature=5ec4e7")
OUTAGES = [StoreUnavailable(), TimeoutError(), ConnectionRefusedError()]


@pytest.fixture
async def engine(database: Database, store: ListingStore) -> AsyncIterator[LeaseEngine]:
    """Reaps when told to. Every test that asks for it ends with all invariants."""
    async with engine_on(database, store) as engine:
        yield engine
    await check_invariants(database, store)


# What goes well. ---------------------------------------------------------------------------------


async def test_nothing_is_deleted_early(engine: LeaseEngine, store: ListingStore) -> None:
    lease = await granted(engine, ttl_seconds=60)
    assert (await reap(engine)).claimed == 0
    assert store.calls_of("delete") == []
    assert (await loaded(engine, lease)).state is LeaseState.ACTIVE


async def test_a_due_lease_is_deleted_and_recorded(
    engine: LeaseEngine, store: ListingStore
) -> None:
    lease = await due_lease(engine)
    result = await reap(engine)
    assert (result.claimed, result.reclaimed, result.mpack_ids) == (1, 1, [lease.mpack_id])
    found = await loaded(engine, lease)
    assert (found.state, found.outcome) == (LeaseState.RECLAIMED, Outcome.DELETED)
    assert found.lateness_ms == result.lateness_ms_max < 5000
    assert len(store.calls_of("delete", lease.storage_key)) == 1
    assert lease.storage_key not in store.blobs


async def test_a_blob_that_is_gone_is_recorded_as_that(
    engine: LeaseEngine, store: ListingStore
) -> None:
    lease = await due_lease(engine)
    store.blobs.pop(lease.storage_key)
    assert (await reap(engine)).already_gone == 1
    assert (await loaded(engine, lease)).outcome is Outcome.ALREADY_GONE


async def test_a_revoked_lease_goes_at_once(engine: LeaseEngine) -> None:
    lease = await granted(engine, ttl_seconds=60)
    await engine.lessor.revoke(lease.mpack_id, reason="test", caller=CALLER)
    assert (await reap(engine)).reclaimed == 1


async def test_grace_keeps_the_blob_after_the_promise(
    database: Database, store: ListingStore
) -> None:
    async with engine_on(database, store, replace(QUICK, grace_seconds=60)) as engine:
        lease = await granted(engine)
        assert lease.expires_at is not None
        assert lease.delete_at - lease.expires_at == timedelta(seconds=60)
        await database.fetch("SELECT pg_sleep(0.06)")
        assert (await reap(engine)).claimed == 0
    await check_invariants(database, store)


async def test_a_reservation_that_was_never_used_goes_with_its_unfinished_upload(
    database: Database, store: ListingStore
) -> None:
    brief = replace(QUICK, upload_limit_seconds=0.05, upload_margin_seconds=0.01)
    async with engine_on(database, store, brief) as engine:
        lease = await reserved(engine)
        await due(database, lease)
        assert (await reap(engine)).already_gone == 1
    assert len(store.calls_of("abort_uploads", lease.storage_key)) == 1
    await check_invariants(database, store)


async def test_a_sweep_goes_on_until_nothing_is_due(
    database: Database, store: ListingStore
) -> None:
    async with engine_on(database, store, replace(QUICK, reap_batch=3)) as engine:
        leases = await granted_many(engine, 10)
        await due(database, leases[-1])
        await due(database, leases[0])
        result = await engine.reaper.sweep(Trigger.COMMAND, limit=4)
        assert (result.claimed, result.reclaimed) == (4, 4)
        assert (await engine.reaper.sweep(Trigger.COMMAND)).reclaimed == 6
    await check_invariants(database, store)


async def test_a_look_only_looks(engine: LeaseEngine, store: ListingStore) -> None:
    lease = await due_lease(engine)
    result = await engine.reaper.look()
    assert (result.claimed, result.mpack_ids) == (1, [lease.mpack_id])
    assert result.lateness_ms_max > 0
    assert (await work_of(engine.database, lease))["claimed_by"] is None
    assert store.calls_of("delete") == []
    await reap(engine)


async def test_what_is_hardly_overdue_may_be_left_alone(engine: LeaseEngine) -> None:
    lease = await due_lease(engine)
    hour = timedelta(hours=1)
    assert (await engine.reaper.look(overdue=hour)).claimed == 0
    assert (await engine.reaper.reap_once(Trigger.COMMAND, overdue=hour)).claimed == 0
    moved = "UPDATE mpack_leases SET delete_at = delete_at - interval '2 hours'"
    await engine.database.execute(moved)
    assert (await engine.reaper.look(overdue=hour)).mpack_ids == [lease.mpack_id]
    await engine.database.execute(moved.replace("-", "+"))
    await reap(engine)


async def test_the_oldest_go_first(engine: LeaseEngine) -> None:
    leases = [await granted(engine, ttl_seconds=ttl) for ttl in (0.6, 0.4, 0.2)]
    await due(engine.database, leases[0])
    result = await engine.reaper.reap_once(Trigger.ALARM, limit=2)
    assert set(result.mpack_ids) == {leases[1].mpack_id, leases[2].mpack_id}
    await reap(engine)


async def test_workers_on_many_replicas_share_the_work(
    engine: LeaseEngine, database_url: str, store: ListingStore
) -> None:
    leases = await granted_many(engine, 60)
    for lease in leases:
        await due(engine.database, lease)
    async with another_database(database_url) as elsewhere, engine_on(elsewhere, store) as other:
        turns = [one.reaper.reap_once(Trigger.ALARM, limit=8) for one in [engine, other] * 8]
        results = await asyncio.gather(*turns)
        rest = await engine.reaper.sweep(Trigger.COMMAND)
    assert sum(result.reclaimed for result in results) + rest.reclaimed == 60
    assert len(store.calls_of("delete")) == 60


@pytest.mark.parametrize("answer", [None, True, {"ResponseMetadata": {}}, DeleteOutcome.DELETED])
async def test_whatever_a_hosts_delete_returns_it_has_deleted(
    database: Database, answer: Any
) -> None:
    """Only an exception is a failure."""

    class Host(MemoryStore):
        async def delete(self, key: str) -> Any:
            await super().delete(key)
            return answer

    store = Host()
    async with engine_on(database, store) as engine:
        lease = await due_lease(engine)
        await reap(engine)
        assert (await loaded(engine, lease)).outcome is Outcome.DELETED
    await check_invariants(database, store)


# What goes wrong with one blob. ------------------------------------------------------------------


async def test_one_broken_blob_does_not_hold_up_the_others(
    engine: LeaseEngine, store: ListingStore
) -> None:
    broken, *others = await granted_many(engine, 5)
    for lease in (broken, *others):
        await due(engine.database, lease)

    async def fail(key: str) -> None:
        if key == broken.storage_key:
            raise BROKEN

    store.on_delete = fail
    result = await reap(engine)
    assert (result.reclaimed, result.failed) == (4, 1)
    store.on_delete = None
    await forget_attempts_pause(engine.database)
    assert (await reap(engine)).reclaimed == 1


async def test_one_blob_that_always_times_out_does_not_starve_the_others(
    database: Database, store: ListingStore
) -> None:
    """Each of its failures looks like an outage; it is the oldest, so every probe would take it."""
    policy = replace(QUICK, circuit_pause_seconds=0.05, retry_first_seconds=0.2)
    async with engine_on(database, store, policy) as engine:
        cursed = await due_lease(engine)

        async def fail(key: str) -> None:
            if key == cursed.storage_key:
                raise TimeoutError

        store.on_delete = fail
        for _ in range(3):
            await reap(engine)
        others = await granted_many(engine, 3)

        async def reaped() -> bool:
            await reap(engine)
            states = [(await loaded(engine, other)).state for other in others]
            return set(states) == {LeaseState.RECLAIMED}

        await until(reaped, seconds=3)
        store.on_delete = None
        await until_reaped(engine, cursed)
    await check_invariants(database, store)


async def until_reaped(engine: LeaseEngine, lease: Lease) -> None:
    async def reaped() -> bool:
        await reap(engine)
        return (await loaded(engine, lease)).state is LeaseState.RECLAIMED

    await until(reaped)


async def test_a_key_about_which_the_store_says_nothing_is_tried_again(
    engine: LeaseEngine, store: ListingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = await due_lease(engine)

    async def silent(_keys: object) -> dict[str, DeleteOutcome | Exception]:
        return {}

    monkeypatch.setattr(store, "delete_many", silent)
    assert (await reap(engine)).handed_back == 1
    monkeypatch.undo()
    await until_reaped(engine, lease)


async def test_a_batch_that_raises_as_a_whole_is_each_ones_failure(
    engine: LeaseEngine, store: ListingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases = await granted_many(engine, 3)
    for lease in leases:
        await due(engine.database, lease)

    async def broken(_keys: object) -> dict[str, DeleteOutcome | Exception]:
        raise BROKEN

    monkeypatch.setattr(store, "delete_many", broken)
    assert (await reap(engine)).failed == 3
    monkeypatch.undo()
    await forget_attempts_pause(engine.database)
    assert (await reap(engine)).reclaimed == 3


async def test_an_upload_that_cannot_be_aborted_is_that_leases_failure(
    database: Database, store: ListingStore
) -> None:
    brief = replace(QUICK, upload_limit_seconds=0.05, upload_margin_seconds=0.01)
    async with engine_on(database, store, brief) as engine:
        lease = await reserved(engine)
        other = await granted(engine, ttl_seconds=0.01)
        await due(database, lease)
        await due(database, other)

        async def fail(_key: str) -> None:
            raise BROKEN

        store.on_abort = fail
        result = await reap(engine)
        assert (result.reclaimed, result.failed) == (1, 1)
        store.on_abort = None
        await forget_attempts_pause(database)
        assert (await reap(engine)).reclaimed == 1
    await check_invariants(database, store)


async def test_many_unfinished_uploads_are_aborted_side_by_side(
    database: Database, store: ListingStore
) -> None:
    """One after the other they would outlast the deletion's time limit, again and again."""
    brief = replace(
        QUICK, upload_limit_seconds=0.05, upload_margin_seconds=0.01, delete_timeout_seconds=1
    )
    async with engine_on(database, store, brief) as engine:
        leases = await asyncio.gather(*(reserved(engine) for _ in range(64)))
        for lease in leases:
            await due(database, lease)

        async def slowly(_key: str) -> None:
            await SystemClock().sleep(0.05)

        store.on_abort = slowly
        assert (await reap(engine)).reclaimed == 64
    await check_invariants(database, store)


# What goes wrong with the store. -----------------------------------------------------------------


@pytest.mark.parametrize("outage", OUTAGES, ids=lambda error: type(error).__name__)
async def test_an_outage_costs_no_attempts_and_stops_deletions(
    engine: LeaseEngine, store: ListingStore, outage: Exception
) -> None:
    leases = await granted_many(engine, 3)
    for lease in leases:
        await due(engine.database, lease)
    store.fail_next_deletes(4, outage)  # The last one is the probe.
    result = await reap(engine)
    assert (result.handed_back, result.failed, engine.reaper.circuit.is_open) == (3, 0, True)
    work = await work_of(engine.database, leases[0])
    assert (work["attempts"], work["claimed_by"]) == (0, None)
    assert (await reap(engine)).claimed == 0
    assert (await types_of(engine, leases[0]))[2:] == []
    for lease in leases:
        await until_reaped(engine, lease)
    assert not engine.reaper.circuit.is_open


async def test_after_a_good_probe_a_little_goes_then_more(
    database: Database, store: ListingStore
) -> None:
    """Everything that was held up meanwhile, at once, would be the next outage."""
    policy = replace(QUICK, circuit_pause_seconds=0.05, retry_first_seconds=0.01, reap_batch=8)
    async with engine_on(database, store, replace(policy, reap_workers=1)) as engine:
        leases = await granted_many(engine, 12)
        for lease in leases:
            await due(database, lease)
        store.fail_next_deletes(9, StoreUnavailable())
        assert (await reap(engine)).handed_back == 8
        before = len(store.calls_of("delete"))
        assert (await reap(engine)).claimed == 0
        assert len(store.calls_of("delete")) == before, "nothing is sent before its time"
        await engine.clock.sleep(0.1)
        assert [(await reap(engine)).reclaimed for _ in range(4)] == [1, 2, 4, 5]
        assert not engine.reaper.circuit.is_ramping
        probes = len(store.calls_of("delete")) - before - 12
        assert probes == 1
    await check_invariants(database, store)


async def test_a_sweep_in_the_ramp_goes_on_to_its_end(
    database: Database, store: ListingStore
) -> None:
    policy = replace(QUICK, circuit_pause_seconds=0.05, retry_first_seconds=0.01)
    async with engine_on(database, store, policy) as engine:
        leases = await granted_many(engine, 40)
        for lease in leases:
            await due(database, lease)
        store.fail_next_deletes(41, StoreUnavailable())
        await reap(engine)
        await engine.clock.sleep(0.1)
        assert (await engine.reaper.sweep(Trigger.COMMAND)).reclaimed == 40
    await check_invariants(database, store)


async def test_probes_come_back_by_themselves_without_an_alarm(
    database: Database, store: ListingStore
) -> None:
    policy = replace(
        QUICK,
        alarm_enabled=False,
        sweep_interval_seconds=0.2,
        circuit_pause_seconds=0.3,
        circuit_pause_seconds_max=0.3,
    )
    async with engine_on(database, store, policy, watch=True) as engine:
        await until(lambda: _reaps(engine))
        store.fail_next_deletes(5, StoreUnavailable())
        lease = await granted(engine)
        await until_reclaimed(engine, lease)
        assert (await work_of(database, lease))["attempts"] == 0
    await check_invariants(database, store)


async def _reaps(engine: LeaseEngine) -> bool:
    return engine.owner.may_reap()


async def test_one_blob_that_fails_as_in_an_outage_ends_as_stuck(
    database: Database, store: ListingStore
) -> None:
    """The store answers for all the others, right before it and right after."""
    policy = replace(QUICK, retry_first_seconds=0.001, stuck_after_attempts=3)
    async with engine_on(database, store, policy) as engine:
        cursed, *others = await granted_many(engine, 4)
        for lease in (cursed, *others):
            await due(database, lease)

        async def fail(key: str) -> None:
            if key == cursed.storage_key:
                raise TimeoutError

        store.on_delete = fail
        result = await reap(engine)
        assert (result.reclaimed, result.handed_back, result.failed) == (3, 1, 0)
        assert (await work_of(database, cursed))["attempts"] == 0, "it may have been bad luck"
        for attempts in range(1, 5):
            await forget_attempts_pause(database)
            assert (await reap(engine)).failed == 1
            work = await work_of(database, cursed)
            assert (work["attempts"], work["last_error"]) == (attempts, "TimeoutError")
            assert (await loaded(engine, cursed)).stuck == (attempts >= 3)
            assert not engine.reaper.circuit.is_open
        store.on_delete = None
        await forget_attempts_pause(database)
        assert (await reap(engine)).reclaimed == 1
        assert (await types_of(engine, cursed))[2:] == [
            "lease.cleanup_failed",
            "lease.stuck",
            "lease.reclaimed",
        ]
    await check_invariants(database, store)


async def test_one_blob_that_makes_its_whole_batch_fail_is_found(
    database: Database, store: ListingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with engine_on(database, store, replace(QUICK, retry_first_seconds=0.001)) as engine:
        cursed, *others = await granted_many(engine, 100)
        for lease in (cursed, *others):
            await due(database, lease)
        delete_many = store.delete_many

        async def fail(keys: Sequence[str]) -> Mapping[str, DeleteOutcome | Exception]:
            if cursed.storage_key in keys:
                raise TimeoutError
            return await delete_many(keys)

        monkeypatch.setattr(store, "delete_many", fail)
        assert (await reap(engine)).handed_back == 100

        async def others_are_gone() -> bool:
            await forget_attempts_pause(database)
            await reap(engine)
            row = await database.fetchrow(
                "SELECT count(*) AS open FROM mpack_leases WHERE state <> 'reclaimed'"
            )
            return row is not None and row["open"] == 1

        await until(others_are_gone, seconds=3)
        await forget_attempts_pause(database)
        assert (await reap(engine)).failed == 1
        assert not engine.reaper.circuit.is_open
        monkeypatch.undo()
        await until_reaped(engine, cursed)
    await check_invariants(database, store)


async def test_a_store_that_goes_while_a_suspect_is_tried_costs_no_attempt(
    database: Database, store: ListingStore
) -> None:
    policy = replace(QUICK, retry_first_seconds=0.001, circuit_pause_seconds=0.05)
    async with engine_on(database, store, policy) as engine:
        lease = await due_lease(engine)
        store.fail_next_deletes(1, TimeoutError())
        assert (await reap(engine)).handed_back == 1
        await forget_attempts_pause(database)
        failing = iter([None, TimeoutError, TimeoutError])  # A probe, the blob, the probe after.

        async def fail(_key: str) -> None:
            if (error := next(failing, None)) is not None:
                raise error

        store.on_delete = fail
        assert (await reap(engine)).handed_back == 1
        assert engine.reaper.circuit.is_open
        assert (await work_of(database, lease))["attempts"] == 0
        await until_reaped(engine, lease)
    await check_invariants(database, store)


async def test_suspects_go_one_by_one_without_bulk_deletions_too(database: Database) -> None:
    store = MemoryStore()
    async with engine_on(database, store, replace(QUICK, retry_first_seconds=0.001)) as engine:
        await due_lease(engine)
        store.fail_next_deletes(1, TimeoutError())
        assert (await reap(engine)).handed_back == 1
        await forget_attempts_pause(database)
        assert (await reap(engine)).reclaimed == 1
    await check_invariants(database, store)


async def test_a_suspect_that_hangs_ends_at_the_time_limit(
    database: Database, store: ListingStore
) -> None:
    policy = replace(QUICK, retry_first_seconds=0.001, delete_timeout_seconds=0.1)
    async with engine_on(database, store, policy) as engine:
        lease = await due_lease(engine)
        never = asyncio.Event()

        async def hang(key: str) -> None:
            if key == lease.storage_key:
                await never.wait()

        store.on_delete = hang
        assert (await reap(engine)).handed_back == 1
        await forget_attempts_pause(database)
        assert (await reap(engine)).failed == 1
        assert (await work_of(database, lease))["last_error"] == "TimeoutError"
        store.on_delete = None
        await forget_attempts_pause(database)
        assert (await reap(engine)).reclaimed == 1
    await check_invariants(database, store)


async def test_a_delete_that_hangs_is_an_outage(database: Database, store: ListingStore) -> None:
    policy = replace(QUICK, delete_timeout_seconds=0.1)
    async with engine_on(database, store, policy) as engine:
        lease = await due_lease(engine)
        stuck = asyncio.Event()

        async def hang(_key: str) -> None:
            await stuck.wait()

        store.on_delete = hang
        assert (await reap(engine)).handed_back == 1
        store.on_delete = None
        await until_reaped(engine, lease)
    await check_invariants(database, store)


async def test_single_deletes_report_each_for_itself(database: Database) -> None:
    store = MemoryStore()
    async with engine_on(database, store) as engine:
        leases = await granted_many(engine, 4)
        for lease in leases:
            await due(database, lease)
        store.fail_next_deletes(1, BROKEN)
        result = await reap(engine)
        assert (result.reclaimed, result.failed) == (3, 1)
        await forget_attempts_pause(database)
        assert (await reap(engine)).reclaimed == 1
    await check_invariants(database, store)


async def test_nothing_is_reaped_while_it_is_not_allowed(
    database: Database, store: ListingStore
) -> None:
    async with LeaseEngine(database, store, QUICK, watch=False) as engine:
        await due_lease(engine)
        assert (await reap(engine)).claimed == 0
        await engine.owner.check()
        assert (await reap(engine)).claimed == 1
    await check_invariants(database, store)


# Plans. ------------------------------------------------------------------------------------------

LEASES = 100_000
FILL = """
INSERT INTO mpack_leases (mpack_id, kind, repo_id, storage_key, state, granted_at, delete_at,
                          version, last_position)
SELECT lpad(n::text, 32, '0'), 'pack', 'r', 'transient/' || n,
       CASE WHEN n % 10 = 0 THEN 'active' ELSE 'reclaimed' END, now(),
       now() + (n - 1000) * interval '1 s', 2, n
FROM generate_series(1, $1) AS n
"""


async def test_the_claim_reads_its_index_from_the_left(database: Database) -> None:
    """A volatile clock in its WHERE would walk the whole index: 115 ms for a million leases."""
    await database.execute(FILL, LEASES)
    await database.execute("ANALYZE mpack_leases")
    async with database.driver() as driver:
        await driver.execute("SET plan_cache_mode = force_generic_plan")
        await driver.execute(f"PREPARE claim (int, text, interval, uuid, interval) AS {CLAIM}")
        plan = "\n".join(
            row[0]
            for row in await driver.fetch(
                "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF)"
                " EXECUTE claim (1000, 'free.x', '30 s', gen_random_uuid(), '0')"
            )
        )
        await driver.execute("RESET plan_cache_mode; DEALLOCATE claim")
    assert "Index Scan using ix_mpack_leases_due" in plan, plan
    assert "Seq Scan" not in plan, plan
    assert "Rows Removed by Filter" not in plan, plan
