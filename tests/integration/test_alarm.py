"""When somebody looks: in time, whatever the clocks, the scheduler and the other replicas do."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from leases.database import Database
from leases.engine import LeaseEngine
from leases.errors import StoreUnavailable
from leases.model import Lease
from leases.postgres_ledger import FREE_DEAD_CLAIMS, LOOK, NEXT_DUE
from leases.timer import SchedulerTimer
from tests.fakes import ListingStore, ShiftedClock
from tests.integration.test_reaper import FILL, LEASES
from tests.invariants import check_invariants
from tests.leasing import (
    CALLER,
    QUICK,
    another_database,
    engine_on,
    granted,
    granted_many,
    loaded,
    until,
    until_reclaimed,
)

HOUR = timedelta(hours=1)
AT_DEFAULTS = replace(QUICK, look_ahead_seconds=0.5)


def in_time(leases: list[Lease], within_ms: int = 1000) -> bool:
    return all(lease.lateness_ms is not None and lease.lateness_ms <= within_ms for lease in leases)


async def test_a_lease_of_ones_own_goes_right_at_its_deadline(
    database: Database, store: ListingStore
) -> None:
    """The look-ahead is far away: the alarm alone did it."""
    policy = replace(QUICK, look_ahead_seconds=60)
    async with engine_on(database, store, policy, watch=True) as engine:
        leases = [await granted(engine, ttl_seconds=ttl) for ttl in (0.3, 0.1, 0.2)]
        assert in_time(await until_reclaimed(engine, *leases), within_ms=250)
    await check_invariants(database, store)


async def test_a_job_that_a_busy_loop_makes_late_is_not_dropped(
    database: Database, store: ListingStore
) -> None:
    """APScheduler drops what is more than a second late unless told otherwise."""
    policy = replace(QUICK, look_ahead_seconds=60)
    async with engine_on(database, store, policy, watch=True) as engine:
        lease = await granted(engine, ttl_seconds=0.2)
        time.sleep(1.5)  # noqa: ASYNC251  a loop that is busy
        async with asyncio.timeout(10):
            await until_reclaimed(engine, lease)
    await check_invariants(database, store)


async def test_another_replicas_leases_are_found_by_the_look_ahead(
    database: Database, database_url: str, store: ListingStore
) -> None:
    async with (
        another_database(database_url) as elsewhere,
        engine_on(elsewhere, store) as granter,
        engine_on(database, store, AT_DEFAULTS, watch=True) as engine,
    ):
        leases = await granted_many(granter, 5, ttl_seconds=0.1)
        assert in_time(await until_reclaimed(engine, *leases))
    await check_invariants(database, store)


async def test_a_revocation_by_another_replica_is_seen(
    database: Database, database_url: str, store: ListingStore
) -> None:
    async with (
        another_database(database_url) as elsewhere,
        engine_on(elsewhere, store) as other,
        engine_on(database, store, AT_DEFAULTS, watch=True) as engine,
    ):
        lease = await granted(engine, ttl_seconds=60)
        await other.lessor.revoke(lease.mpack_id, reason="test", caller=CALLER)
        assert in_time(await until_reclaimed(engine, lease))
    await check_invariants(database, store)


async def test_the_start_reaps_what_fell_due_while_nobody_was_there(
    database: Database, store: ListingStore
) -> None:
    async with engine_on(database, store) as engine:
        leases = await granted_many(engine, 5, ttl_seconds=0.01)
    policy = replace(QUICK, alarm_enabled=False)
    async with LeaseEngine(database, store, policy) as engine:
        await until_reclaimed(engine, *leases)
        events = await engine.log.read_stream(f"lease/{leases[0].mpack_id}", after_version=2)
    assert '"trigger":"start_up"' in events[0].data
    await check_invariants(database, store)


async def test_everything_goes_with_the_scheduler_switched_off(
    database: Database, store: ListingStore
) -> None:
    policy = replace(QUICK, alarm_enabled=False, sweep_interval_seconds=0.2)
    async with engine_on(database, store, policy, watch=True) as engine:
        leases = await granted_many(engine, 10, ttl_seconds=0.1)
        assert in_time(await until_reclaimed(engine, *leases))
    await check_invariants(database, store)


async def test_a_lost_job_delays_a_cleanup_to_the_next_look(
    database: Database, store: ListingStore
) -> None:
    timer = SchedulerTimer()
    async with engine_on(database, store, AT_DEFAULTS, watch=True, timer=timer) as engine:
        lease = await granted(engine, ttl_seconds=0.2)
        timer.scheduler.remove_all_jobs()
        assert in_time(await until_reclaimed(engine, lease))
    await check_invariants(database, store)


@pytest.mark.parametrize("shift", [HOUR, -HOUR], ids=["an hour ahead", "an hour behind"])
async def test_a_wrong_wall_clock_changes_nothing(
    database: Database, store: ListingStore, shift: timedelta
) -> None:
    clock = ShiftedClock(shift)
    async with engine_on(database, store, AT_DEFAULTS, watch=True, clock=clock) as engine:
        leases = await granted_many(engine, 5, ttl_seconds=0.2)
        assert in_time(await until_reclaimed(engine, *leases))
        assert abs(engine.database_clock.skew_seconds - shift.total_seconds()) < 1
    await check_invariants(database, store)


@pytest.mark.parametrize("shift", [HOUR, -HOUR], ids=["forward", "back"])
async def test_a_wall_clock_that_jumps_while_leases_are_open_changes_nothing(
    database: Database, store: ListingStore, shift: timedelta
) -> None:
    clock = ShiftedClock()
    async with engine_on(database, store, AT_DEFAULTS, watch=True, clock=clock) as engine:
        leases = await granted_many(engine, 3, ttl_seconds=0.4)
        clock.shift = shift
        leases += await granted_many(engine, 3, ttl_seconds=0.4)
        assert in_time(await until_reclaimed(engine, *leases))
    await check_invariants(database, store)


async def test_deadlines_that_pass_while_the_loop_is_busy_are_all_heard(
    database: Database, store: ListingStore, caplog: pytest.LogCaptureFixture
) -> None:
    """A fire has not ended for APScheduler when the next one is due already: by default it would
    be dropped.
    """
    policy = replace(QUICK, look_ahead_seconds=60)
    async with engine_on(database, store, policy, watch=True) as engine:
        now = engine.database_clock.now()
        loop = asyncio.get_running_loop()

        def keep_the_loop_busy() -> None:
            loop.call_soon(time.sleep, 0.02)

        engine.alarm._wake = keep_the_loop_busy
        for number in range(50):
            engine.alarm.arm(now + timedelta(milliseconds=20 + 5.5 * number))

        async def all_heard() -> bool:
            return engine.alarm._own == []

        await until(all_heard, seconds=5)
    assert "maximum number of running instances" not in caplog.text


async def test_all_of_many_leases_that_end_together_go_in_time(
    database: Database, store: ListingStore
) -> None:
    policy = replace(AT_DEFAULTS, reap_batch=25)
    async with engine_on(database, store, policy, watch=True) as engine:
        leases = await granted_many(engine, 100, ttl_seconds=2)
        assert in_time(await until_reclaimed(engine, *leases))
    await check_invariants(database, store)


class _Looked(Database):
    """Counts the look-aheads, and fails some of them for a reason that nobody thought of."""

    looks = 0
    failing = 0

    def another(self) -> Database:
        return self

    async def fetch(self, sql: str, *args: Any) -> list[asyncpg.Record]:
        if sql == LOOK:
            self.looks += 1
            if self.failing:
                self.failing -= 1
                raise asyncpg.InternalServerError
        return await super().fetch(sql, *args)


@pytest.mark.parametrize("reason", ["the mark is foreign", "the store is out"])
async def test_waiting_with_something_due_does_not_spin(
    database: Database, store: ListingStore, reason: str
) -> None:
    """A paused or broken store may stay so for days."""
    counting = _Looked(database.engine)
    policy = replace(QUICK, circuit_pause_seconds=60, circuit_pause_seconds_max=60)
    async with engine_on(counting, store, policy, watch=True) as engine:
        if reason == "the store is out":
            store.fail_next_deletes(2, StoreUnavailable())  # The lease's, and the probe.
        else:
            await store.put("transient/.owner", b"{}")
            await engine.owner.check()
        lease = await granted(engine, ttl_seconds=0.01)
        await engine.clock.sleep(0.3)
        counting.looks = 0
        await engine.clock.sleep(1)
        assert 1 < counting.looks < 20
        assert (await loaded(engine, lease)).reclaimed_at is None
    await counting.close()
    await check_invariants(database, store)


async def test_the_look_ahead_survives_whatever_the_database_says(
    database: Database, store: ListingStore
) -> None:
    """It is the net below everything: without it this process would reap for nobody else."""
    odd = _Looked(database.engine)
    odd.failing = 3
    async with (
        engine_on(odd, store, watch=True) as engine,
        engine_on(database, store) as other,
    ):
        lease = await granted(other)
        await until_reclaimed(engine, lease)
    assert odd.failing == 0
    await odd.close()
    await check_invariants(database, store)


async def test_the_look_ahead_survives_the_loss_of_its_connections(
    database: Database, database_url: str, store: ListingStore
) -> None:
    async with (
        another_database(database_url) as elsewhere,
        engine_on(elsewhere, store, watch=True) as losing,
        engine_on(database, store) as engine,
    ):
        lease = await granted(losing, ttl_seconds=0.3)
        async with database.driver() as survivor:
            own = await survivor.fetchval("SELECT pg_backend_pid()")
            await survivor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                f" WHERE datname = current_database() AND pid <> {own}"
            )
        assert in_time(await until_reclaimed(engine, lease))

        async def live_again() -> bool:
            return losing.instance.is_live

        await until(live_again)
    await check_invariants(database, store)


@pytest.mark.parametrize(
    "sql, index",
    [
        (NEXT_DUE, "ix_mpack_leases_due"),
        (LOOK, "ix_mpack_leases_due"),
        (LOOK, "ix_mpack_leases_claimed_by"),
        (FREE_DEAD_CLAIMS, "ix_mpack_leases_claimed_by"),
    ],
    ids=["next due", "look ahead", "dead claims in it", "freeing dead claims"],
)
async def test_looking_costs_the_same_with_many_leases(
    database: Database, sql: str, index: str
) -> None:
    await database.execute(FILL, LEASES)
    await database.execute("ANALYZE mpack_leases")
    rows = await database.fetch(f"EXPLAIN (COSTS OFF) {sql}")
    plan = "\n".join(row[0] for row in rows)
    assert index in plan, plan
    assert "Seq Scan on mpack_leases" not in plan, plan
