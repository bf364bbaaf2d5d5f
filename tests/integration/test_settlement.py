"""What is written down of deletions is true, stands once, and keeps nobody waiting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import pytest

from leases.database import Database
from leases.engine import LeaseEngine
from leases.errors import DatabaseUnavailable
from leases.model import LeaseState, Trigger
from tests.fakes import ListingStore
from tests.invariants import check_invariants
from tests.leasing import (
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
    types_of,
    until,
    until_reclaimed,
    work_of,
)


@pytest.fixture
async def engine(database: Database, store: ListingStore) -> AsyncIterator[LeaseEngine]:
    """Reaps when told to. Every test that asks for it ends with all invariants."""
    async with engine_on(database, store) as engine:
        yield engine
    await check_invariants(database, store)


class _Wire(Database):
    """A way to the database on which the statement that is named meets with trouble."""

    named: str | None = None

    def another(self) -> Database:
        return self

    def held(self) -> Database:
        return self

    def concerns(self, sql: str) -> bool:
        return self.named is not None and self.named in sql


class _LosesAnswers(_Wire):
    """Carries it out, but nobody hears of it."""

    async def fetch(self, sql: str, *args: Any) -> list[asyncpg.Record]:
        rows = await super().fetch(sql, *args)
        if self.concerns(sql):
            raise DatabaseUnavailable(cause="the answer was lost")
        return rows


class _Refuses(_Wire):
    """Does not carry it out."""

    refused = 0

    async def fetch(self, sql: str, *args: Any) -> list[asyncpg.Record]:
        if self.concerns(sql):
            self.refused += 1
            raise DatabaseUnavailable(cause="refused")
        return await super().fetch(sql, *args)


class _AnswersLate(_Wire):
    """Carries it out, and is heard of half a second later; `heard_at` is the database's time."""

    heard_at: datetime | None = None

    async def fetch(self, sql: str, *args: Any) -> list[asyncpg.Record]:
        rows = await super().fetch(sql, *args)
        if self.concerns(sql):
            await super().fetch("SELECT pg_sleep(0.5)")
            (row,) = await super().fetch("SELECT clock_timestamp() AS now")
            self.heard_at = row["now"]
        return rows


async def test_the_records_time_is_the_databases(engine: LeaseEngine) -> None:
    lease = await due_lease(engine)
    await reap(engine)
    found = await loaded(engine, lease)
    last = (await engine.log.read_stream(f"lease/{lease.mpack_id}"))[-1]
    assert found.reclaimed_at is not None
    assert lease.delete_at <= found.reclaimed_at <= last.recorded_at + timedelta(milliseconds=100)


async def test_a_claim_that_is_heard_of_late_makes_the_record_no_earlier(
    database: Database, store: ListingStore
) -> None:
    """The blob went after that, so a proof that counts from the claim would be a lie."""
    wire = _AnswersLate(database.engine)
    async with engine_on(wire, store) as engine:
        lease = await due_lease(engine)
        wire.named = "SET claimed_by = $2"
        await reap(engine)
        found = await loaded(engine, lease)
        assert found.reclaimed_at is not None
        assert wire.heard_at is not None
        assert found.reclaimed_at > wire.heard_at - timedelta(seconds=0.5)
    await wire.close()
    await check_invariants(database, store)


async def test_a_failed_delete_is_noted_and_tried_again_a_second_later(
    engine: LeaseEngine, store: ListingStore
) -> None:
    lease = await due_lease(engine)
    store.fail_next_deletes(1)
    assert (await reap(engine)).failed == 1
    work = await work_of(engine.database, lease)
    assert (work["attempts"], work["last_error"], work["claimed_by"]) == (1, "RuntimeError", None)
    assert work["next_attempt_at"] - work["now"] > timedelta(seconds=0.9)
    assert (await reap(engine)).claimed == 0
    await forget_attempts_pause(engine.database)
    assert (await reap(engine)).reclaimed == 1
    assert (await types_of(engine, lease))[2:] == ["lease.cleanup_failed", "lease.reclaimed"]


async def test_only_the_first_failure_is_a_fact_and_the_eighth_is_stuck(
    engine: LeaseEngine, store: ListingStore
) -> None:
    lease = await due_lease(engine)
    store.fail_next_deletes(10)
    stuck = []
    for _ in range(10):
        await reap(engine)
        stuck.append((await loaded(engine, lease)).stuck)
        await forget_attempts_pause(engine.database)
    assert stuck == [False] * 7 + [True] * 3
    assert (await work_of(engine.database, lease))["attempts"] == 10
    await reap(engine)
    assert (await types_of(engine, lease))[2:] == [
        "lease.cleanup_failed",
        "lease.stuck",
        "lease.reclaimed",
    ]
    assert not (await loaded(engine, lease)).stuck


async def test_a_record_that_the_database_refuses_holds_up_nobody_else(
    database: Database, store: ListingStore
) -> None:
    """Its stream contradicts itself: the place of its next event is taken, unknown to the table."""
    async with engine_on(database, store) as engine:
        good, bad, locked = await granted_many(engine, 3)
        for table, column in (("event_streams", "stream"), ("mpack_leases", "mpack_id")):
            await database.execute(
                f"UPDATE {table} SET version = 1 WHERE {column} LIKE '%' || $1", bad.mpack_id
            )
        for lease in (good, bad, locked):
            await due(database, lease)

        async def fail(key: str) -> None:
            if key == locked.storage_key:
                raise PermissionError

        store.on_delete = fail
        result = await reap(engine)
        assert (result.claimed, result.reclaimed, result.failed) == (3, 1, 2)
        assert (await loaded(engine, good)).state is LeaseState.RECLAIMED
        notes = [await work_of(database, lease) for lease in (bad, locked)]
        assert [note["last_error"] for note in notes] == [
            "UniqueViolationError",
            "PermissionError",
        ]
        assert [(note["attempts"], note["claimed_by"]) for note in notes] == [(1, None)] * 2


async def test_a_lost_answer_to_the_record_leads_to_no_second_one(
    database: Database, store: ListingStore
) -> None:
    lossy = _LosesAnswers(database.engine)
    async with engine_on(lossy, store) as engine:
        lease = await due_lease(engine)
        lossy.named = "append_events"
        with pytest.raises(DatabaseUnavailable):
            await reap(engine)
        lossy.named = None
        assert (await engine.reaper.sweep(Trigger.COMMAND)).claimed == 0
        assert (await types_of(engine, lease)).count("lease.reclaimed") == 1
    await lossy.close()
    await check_invariants(database, store)


async def test_after_a_database_outage_claims_are_not_held_to_their_limit(
    database: Database, store: ListingStore
) -> None:
    """The deletion was done when the database went; the same process takes the row up again
    within seconds of its end, not after the claim's thirty.
    """
    refusing = _Refuses(database.engine)
    async with engine_on(refusing, store, watch=True) as engine:
        lease = await granted(engine, ttl_seconds=0.2)
        refusing.named = "append_events"

        async def given_up_twice() -> bool:
            return refusing.refused >= 8

        await until(given_up_twice)
        refusing.named = None
        (found,) = await until_reclaimed(engine, lease)
        assert found.lateness_ms is not None
        assert found.lateness_ms < 6000
    await refusing.close()
    await check_invariants(database, store)


async def test_a_claim_that_was_taken_over_cannot_record(
    database: Database, database_url: str, store: ListingStore
) -> None:
    """Its holder was so slow that its limit passed; the other one's record stands alone."""
    policy = replace(QUICK, claim_limit_seconds=0.2, delete_timeout_seconds=0.1)
    slow = replace(policy, claim_limit_seconds=30, delete_timeout_seconds=20)
    async with engine_on(database, store, slow) as engine:
        lease = await due_lease(engine)
        may_go_on, under_way = asyncio.Event(), asyncio.Event()

        async def hang(_key: str) -> None:
            under_way.set()
            await may_go_on.wait()

        store.on_delete = hang
        first = asyncio.ensure_future(reap(engine))
        await under_way.wait()
        store.on_delete = None
        await database.execute("UPDATE mpack_leases SET claimed_until = clock_timestamp()")
        async with (
            another_database(database_url) as elsewhere,
            engine_on(elsewhere, store, policy) as other,
        ):
            assert (await reap(other)).reclaimed == 1
        may_go_on.set()
        assert ((await first).claimed, (await first).reclaimed) == (1, 0)
        assert (await types_of(engine, lease)).count("lease.reclaimed") == 1
    await check_invariants(database, store)
