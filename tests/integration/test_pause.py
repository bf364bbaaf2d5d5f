"""An operator pauses, resumes and adopts; every replica obeys, and the log remembers."""

from __future__ import annotations

import pytest

from leases.database import Database
from leases.engine import LeaseEngine
from leases.errors import StoreUnavailable
from leases.model import LeaseState, Trigger
from leases.owner import OWNER_KEY, Mark, Ownership
from leases.pause import STREAM
from tests.fakes import ListingStore, MemoryStore
from tests.leasing import CALLER, QUICK, another_database, due, engine_on, granted, loaded, until

FOREIGN = Mark(log_id="00000000-0000-4000-8000-000000000000", position=9, hash="00")


async def test_another_replica_obeys_by_itself(
    database: Database, database_url: str, store: ListingStore
) -> None:
    async with (
        another_database(database_url) as elsewhere,
        LeaseEngine(elsewhere, store, QUICK) as replica,
        engine_on(database, store) as operator,
    ):

        async def reaps() -> bool:
            return replica.owner.may_reap()

        async def stands_still() -> bool:
            return not replica.owner.may_reap()

        await until(reaps)
        await operator.owner.pauses.pause(reason="moving house", caller=CALLER)
        await until(stands_still, seconds=2)
        assert replica.owner.reason == "paused by test: moving house"
        lease = await granted(replica)
        await due(database, lease)
        assert (await replica.reaper.sweep(Trigger.COMMAND)).claimed == 0
        await operator.owner.pauses.resume(caller=CALLER)

        async def reclaimed() -> bool:
            return (await loaded(replica, lease)).state is LeaseState.RECLAIMED

        await until(reclaimed)


async def test_a_pause_outlives_every_process(database: Database, store: ListingStore) -> None:
    async with engine_on(database, store) as engine:
        await engine.owner.pauses.pause(reason="moving house", caller=CALLER)
    async with engine_on(database, store) as engine:
        assert engine.owner.state is Ownership.PAUSED
        events = await engine.log.read_stream(STREAM)
        assert [(event.type, event.actor) for event in events] == [("reaping.paused", "test")]


async def test_a_pause_is_obeyed_while_the_store_is_out(
    database: Database, store: ListingStore
) -> None:
    async def out(_key: str) -> None:
        raise StoreUnavailable

    async with engine_on(database, store) as engine:
        store.on_get = out
        await engine.owner.pauses.pause(reason="it is out", caller=CALLER)
        await engine.owner.obey()
        assert not engine.owner.may_reap()
        await engine.owner.pauses.resume(caller=CALLER)
        with pytest.raises(StoreUnavailable):
            await engine.owner.obey()
        store.on_get = None
        await engine.owner.obey()
        assert engine.owner.may_reap()


async def test_adopting_takes_a_marked_store_over(database: Database, store: ListingStore) -> None:
    store.blobs[OWNER_KEY] = FOREIGN.dump()
    async with engine_on(database, store) as engine:
        assert engine.owner.state is Ownership.PAUSED
        assert await engine.owner.adopt(caller=CALLER) is Ownership.CONFIRMED
        mark = Mark.load(store.blobs[OWNER_KEY])
        assert mark is not None
        assert (mark.log_id, mark.position) == (engine.log_id, 1)
        (event,) = await engine.log.read_stream(STREAM)
        assert event.data == f'{{"adopted_from":"{FOREIGN.log_id}"}}'


async def test_adopting_ends_a_pause_too(database: Database, store: ListingStore) -> None:
    async with engine_on(database, store) as engine:
        await engine.owner.pauses.pause(reason="looking", caller=CALLER)
        del store.blobs[OWNER_KEY]
        assert await engine.owner.adopt(caller=CALLER) is Ownership.CONFIRMED


async def test_a_store_without_a_mark_is_adopted_without_one(database: Database) -> None:
    store = MemoryStore()
    async with engine_on(database, store) as engine:
        assert await engine.owner.adopt(caller=CALLER) is Ownership.CONFIRMED
    assert store.blobs == {}


async def test_a_lease_that_failed_is_retried_at_once(
    database: Database, store: ListingStore
) -> None:
    async with engine_on(database, store) as engine:
        lease = await granted(engine)
        await due(database, lease)
        store.fail_next_deletes(1)
        assert (await engine.reaper.sweep(Trigger.COMMAND)).failed == 1
        assert (await engine.reaper.sweep(Trigger.COMMAND)).claimed == 0
        await engine.lessor.retry(lease.mpack_id, caller=CALLER)
        await engine.lessor.retry(lease.mpack_id, caller=CALLER)  # Nothing has failed since.
        assert (await engine.reaper.sweep(Trigger.COMMAND)).reclaimed == 1
        types = [e.type for e in await engine.log.read_stream(f"lease/{lease.mpack_id}")]
        assert types[2:] == ["lease.cleanup_failed", "lease.retried", "lease.reclaimed"]
