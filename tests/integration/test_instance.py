"""Who is alive: a claim ends with its holder's session, or at its limit when there was none."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from leases.clock import SystemClock
from leases.database import Database
from leases.engine import LeaseEngine
from leases.instance import LIVE_INSTANCES, LOCK_CLASS, Instance
from leases.model import Lease, LeaseState, Trigger
from leases.postgres_ledger import PostgresLedger
from tests.fakes import ListingStore
from tests.invariants import check_invariants
from tests.leasing import (
    QUICK,
    another_database,
    connection_to,
    due,
    end_instance_sessions,
    engine_on,
    granted,
    loaded,
    until,
    until_reclaimed,
    work_of,
)


async def live_names(database: Database) -> list[str]:
    row = await database.row(f"SELECT {LIVE_INSTANCES} AS names")
    return list(row["names"])


async def until_live(instance: Instance) -> None:
    async def live() -> bool:
        return instance.is_live

    await until(live)


async def test_an_instance_is_listed_while_it_runs(database: Database, store: ListingStore) -> None:
    async with engine_on(database, store) as engine:
        assert engine.instance.claim_name == f"live.{engine.instance.instance_id}"
        assert await live_names(database) == [engine.instance.claim_name]

    async def gone() -> bool:
        return await live_names(database) == []

    await until(gone)


async def test_any_id_is_listed_as_it_is_claimed_with(database: Database) -> None:
    """The lock's key is a signed number, the id is not."""
    for instance_id in ("00000001", "7fffffff", "80000000", "ffffffff"):
        instance = Instance(PostgresLedger(database), SystemClock())
        instance.instance_id = instance_id
        ready = asyncio.Event()
        task = asyncio.ensure_future(instance.run(ready=ready))
        await ready.wait()
        assert instance.claim_name in await live_names(database)
        task.cancel()
        await asyncio.wait([task])


async def test_instances_of_other_databases_are_not_ours(
    database: Database, database_url: str, store: ListingStore
) -> None:
    maintenance = database_url.replace(
        database_url.partition("@/")[2].partition("?")[0], "postgres"
    )
    async with connection_to(maintenance) as elsewhere:
        await elsewhere.fetchval("SELECT pg_advisory_lock($1, $2)", LOCK_CLASS, 7)
        assert await live_names(database) == []


async def hold_a_claim(
    engine: LeaseEngine, store: ListingStore, lease: Lease
) -> asyncio.Task[None]:
    """Reap up to the deletion, and stay there."""
    under_way, never = asyncio.Event(), asyncio.Event()

    async def hang(_key: str) -> None:
        under_way.set()
        await never.wait()

    store.on_delete = hang
    await due(engine.database, lease)

    async def reap() -> None:
        await engine.reaper.reap_once(Trigger.ALARM)

    task = asyncio.ensure_future(reap())
    await under_way.wait()
    store.on_delete = None
    return task


async def test_a_dead_instances_claim_is_taken_over_within_about_a_second(
    database: Database, database_url: str, store: ListingStore
) -> None:
    async with (
        another_database(database_url) as elsewhere,
        engine_on(elsewhere, store) as dying,
        engine_on(database, store, watch=True) as engine,
    ):
        lease = await granted(dying)
        claim = await hold_a_claim(dying, store, lease)
        assert (await work_of(database, lease))["claimed_by"] == dying.instance.claim_name
        claim.cancel()
        await asyncio.wait([claim])
        alive = next(task for task in dying._running if "Instance.run" in str(task.get_coro()))
        alive.cancel()  # Its session goes, as it does with a killed process.
        (found,) = await until_reclaimed(engine, lease)
        assert found.lateness_ms is not None
        assert found.lateness_ms < 2000
    await check_invariants(database, store)


async def test_a_living_instances_claim_is_left_alone(
    database: Database, database_url: str, store: ListingStore
) -> None:
    async with (
        another_database(database_url) as elsewhere,
        engine_on(elsewhere, store) as slow,
        engine_on(database, store, watch=True) as engine,
    ):
        lease = await granted(slow)
        claim = await hold_a_claim(slow, store, lease)
        await engine.clock.sleep(0.5)
        assert (await work_of(database, lease))["claimed_by"] == slow.instance.claim_name
        claim.cancel()
        await asyncio.wait([claim])
        await database.execute("UPDATE mpack_leases SET claimed_until = clock_timestamp()")
        await until_reclaimed(engine, lease)
    await check_invariants(database, store)


async def test_a_claim_without_a_session_ends_at_its_limit_alone(
    database: Database, store: ListingStore
) -> None:
    """A holder behind a pooler cannot be known dead."""
    async with engine_on(database, store, watch=True) as engine:
        lease = await granted(engine, ttl_seconds=0.3)
        await database.execute(
            "UPDATE mpack_leases SET claimed_by = 'free.00c0ffee',"
            " claim_token = gen_random_uuid(), claimed_until = delete_at + $1",
            timedelta(seconds=0.7),
        )
        (found,) = await until_reclaimed(engine, lease)
        assert found.lateness_ms is not None
        assert 700 <= found.lateness_ms < 1700
    await check_invariants(database, store)


async def test_without_its_session_an_instance_claims_as_free(
    database: Database, store: ListingStore
) -> None:
    async with engine_on(database, store) as engine:
        await end_instance_sessions(database)

        async def lost() -> bool:
            return not engine.instance.is_live

        await until(lost)
        assert engine.instance.claim_name == f"free.{engine.instance.instance_id}"
        lease = await granted(engine)
        await due(database, lease)
        await engine.reaper.reap_once(Trigger.ALARM)
        assert (await loaded(engine, lease)).state is LeaseState.RECLAIMED
        await until_live(engine.instance)
    await check_invariants(database, store)


async def test_a_lock_that_was_still_held_is_taken_later(
    database: Database, database_url: str
) -> None:
    """The server may notice the end of our old session only after we have a new one."""
    instance = Instance(PostgresLedger(database), SystemClock(), ping_seconds=0.05)
    ready = asyncio.Event()
    async with connection_to(database_url) as old:
        await old.execute(f"SELECT pg_advisory_lock({LOCK_CLASS}, {instance._lock_key()})")
        task = asyncio.ensure_future(instance.run(ready=ready))
        await ready.wait()
        assert not instance.is_live
    await until_live(instance)
    task.cancel()
    await asyncio.wait([task])


async def test_listeners_hear_and_hear_again_after_a_reconnection(
    database: Database, store: ListingStore
) -> None:
    heard: list[str] = []
    async with engine_on(database, store) as engine:
        await asyncio.gather(
            *(engine.instance.listen(f"channel_{n}", heard.append) for n in range(8)),
            engine.instance.listen("channel_0", heard.append),
        )
        await database.execute("SELECT pg_notify('channel_0', 'one')")

        async def both() -> bool:
            return heard == ["one", "one"]

        await until(both)
        await end_instance_sessions(database)

        async def heard_two() -> bool:
            await database.execute("SELECT pg_notify('channel_7', 'two')")
            return "two" in heard

        await until(heard_two)


async def test_listening_while_the_session_is_being_made_does_no_harm(
    database: Database,
) -> None:
    instance = Instance(PostgresLedger(database), SystemClock())
    heard: list[str] = []
    for number in range(50):
        await instance.listen(f"early_{number}", heard.append)
    ready = asyncio.Event()
    task = asyncio.ensure_future(instance.run(ready=ready))

    async def connected() -> bool:
        return instance._held is not None

    await until(connected)
    await asyncio.gather(*(instance.listen(f"late_{n}", heard.append) for n in range(5)))
    await until_live(instance)
    await database.execute("SELECT pg_notify('late_4', 'late'), pg_notify('early_49', 'early')")

    async def heard_both() -> bool:
        return sorted(heard) == ["early", "late"]

    await until(heard_both)
    task.cancel()
    await asyncio.wait([task])


def test_the_policy_of_these_tests_leaves_the_claim_limit_alone() -> None:
    """Or a take-over would prove nothing."""
    assert QUICK.claim_limit_seconds == 30
