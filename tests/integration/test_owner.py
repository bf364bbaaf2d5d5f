"""Whose store is it? Nothing is deleted from one that another log has marked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from leases.beginning import ARCHIVE_STREAM
from leases.codec import JSON
from leases.database import Database
from leases.engine import LeaseEngine
from leases.errors import StoreUnavailable
from leases.model import LeaseState, Trigger
from leases.owner import OWNER_KEY, Mark, Ownership
from tests.databases import NewDatabase
from tests.fakes import ListingStore, MemoryStore
from tests.leasing import (
    CALLER,
    QUICK,
    another_database,
    as_owner,
    due,
    end_instance_sessions,
    engine_on,
    granted,
    loaded,
    note,
    until,
    until_reclaimed,
)

OTHER_LOG = "00000000-0000-4000-8000-000000000000"


def mark_of(store: ListingStore) -> Mark:
    mark = Mark.load(store.blobs[OWNER_KEY])
    assert mark is not None
    return mark


async def test_a_fresh_store_is_marked(database: Database, store: ListingStore) -> None:
    async with engine_on(database, store) as engine:
        assert engine.owner.state is Ownership.CONFIRMED
        head = await engine.log.head()
    assert mark_of(store) == Mark(
        log_id=engine.log_id, position=head["position"], hash=head["hash"].hex()
    )


async def test_the_mark_follows_the_log(database: Database, store: ListingStore) -> None:
    async with engine_on(database, store) as engine:
        await engine.log.append([note("repo/1")])
        assert await engine.owner.check() is Ownership.CONFIRMED
        assert mark_of(store).position == 1
        writes = len(store.calls_of("put", OWNER_KEY))
        await engine.owner.check()
        assert len(store.calls_of("put", OWNER_KEY)) == writes


@pytest.mark.parametrize(
    "mark",
    [
        Mark(log_id=OTHER_LOG, position=0, hash="").dump(),
        b"\xff\xfe",
        b"[]",
        b"{}",
        b"",
    ],
    ids=["another log's", "no text", "no map", "an empty map", "nothing"],
)
async def test_a_foreign_or_unreadable_mark_pauses_until_it_is_mended(
    database: Database, store: ListingStore, mark: bytes
) -> None:
    async with engine_on(database, store) as engine:
        lease = await granted(engine)
        await due(database, lease)
        own = store.blobs[OWNER_KEY]
        store.blobs[OWNER_KEY] = mark
        assert await engine.owner.check() is Ownership.PAUSED
        assert (await engine.reaper.sweep(Trigger.COMMAND)).claimed == 0
        assert store.blobs[OWNER_KEY] == mark
        store.blobs[OWNER_KEY] = own
        assert await engine.owner.check() is Ownership.CONFIRMED
        assert (await engine.reaper.sweep(Trigger.COMMAND)).reclaimed == 1


async def test_blobs_of_strangers_without_a_mark_pause(
    database: Database, store: ListingStore
) -> None:
    store.blobs[f"transient/{OTHER_LOG}/x"] = b"theirs"
    async with engine_on(database, store) as engine:
        assert engine.owner.state is Ownership.PAUSED
        assert OTHER_LOG in engine.owner.reason
    assert OWNER_KEY not in store.blobs


async def test_own_blobs_without_a_mark_are_no_strangers(
    database: Database, store: ListingStore
) -> None:
    """A lifecycle rule may have taken the mark."""
    async with engine_on(database, store) as engine:
        await granted(engine, ttl_seconds=60)
        del store.blobs[OWNER_KEY]
        assert await engine.owner.check() is Ownership.CONFIRMED
    assert OWNER_KEY in store.blobs


async def test_durable_blobs_of_others_are_not_looked_at(
    database: Database, store: ListingStore
) -> None:
    store.blobs["segments/x"] = b"durable"
    async with engine_on(database, store) as engine:
        assert engine.owner.state is Ownership.CONFIRMED


async def test_an_empty_database_on_a_used_store_pauses(
    database: Database, store: ListingStore, new_database: NewDatabase
) -> None:
    """Every clone of the tests' template has the same log id, as a restored backup has."""
    async with engine_on(database, store) as engine:
        lease = await granted(engine)
        await engine.owner.check()
    with new_database() as url:
        async with another_database(url) as emptied, engine_on(emptied, store) as late:
            assert late.owner.state is Ownership.PAUSED
            assert "newest events are lost" in late.owner.reason
    assert lease.storage_key in store.blobs


async def test_a_log_that_lost_its_tail_and_went_on_pauses(
    database: Database, store: ListingStore, new_database: NewDatabase
) -> None:
    """Its positions reach as far as the published ones again, but its hashes are others."""
    async with engine_on(database, store) as engine:
        await engine.log.append([note("repo/1")])
        await engine.owner.check()
    with new_database() as url:
        async with another_database(url) as restored, engine_on(restored, MemoryStore()) as late:
            await late.log.append([note("repo/2"), note("repo/3")])
        async with another_database(url) as restored, engine_on(restored, store) as late:
            assert late.owner.state is Ownership.PAUSED
            assert "not the one that was published" in late.owner.reason


@asynccontextmanager
async def two_engines(
    database: Database, url: str, store: ListingStore
) -> AsyncIterator[tuple[LeaseEngine, LeaseEngine]]:
    """As of two replicas, each with connections of its own; the first one's are the test's."""
    async with (
        another_database(url) as elsewhere,
        engine_on(database, store) as engine,
        engine_on(elsewhere, store) as other,
    ):
        yield engine, other


async def lose_newest(database: Database, *, after: int) -> None:
    """As a standby that takes over before it has them."""
    await as_owner(
        database,
        f"DELETE FROM events WHERE position > {after}",
        f"DELETE FROM event_streams WHERE last_position > {after}",
        "UPDATE event_head AS h SET position = e.position, hash = e.hash"
        f" FROM events AS e WHERE e.position = {after}",
    )


async def test_a_process_misses_what_it_appended_itself(
    database: Database, database_url: str, store: ListingStore
) -> None:
    """The mark is as old as the last comparison; what was lost is younger."""
    async with two_engines(database, database_url, store) as (engine, other):
        await engine.log.append([note("repo/1")])
        await engine.owner.check()
        await engine.log.append([note("repo/2")])
        assert await engine.owner.check() is Ownership.CONFIRMED
        await engine.log.append([note("repo/3")])
        await lose_newest(database, after=2)
        assert await engine.owner.check() is Ownership.PAUSED
        assert "does not hold its event 3 any more" in engine.owner.reason
        assert await other.owner.check() is Ownership.PAUSED, "the mark tells the others"
        await other.log.append([note("repo/4")])
        for one in (engine, other):
            assert await one.owner.check() is Ownership.PAUSED, "the log has come as far again"
        await other.owner.adopt(caller=CALLER)
        for one in (engine, other):
            assert await one.owner.check() is Ownership.CONFIRMED, one.owner.reason


@pytest.mark.parametrize("kind", [MemoryStore, ListingStore], ids=["cannot list", "no mark"])
async def test_a_process_misses_what_it_appended_where_no_mark_is(
    database: Database, kind: Callable[[], MemoryStore]
) -> None:
    """A host's store need not list, and a lifecycle rule may take the mark."""
    store = kind()
    async with engine_on(database, store) as engine:
        lease = await granted(engine)
        await engine.log.append([note("repo/1")])
        store.blobs.pop(OWNER_KEY, None)
        await lose_newest(database, after=2)
        assert await engine.owner.check() is Ownership.PAUSED
        assert "does not hold its event 3 any more" in engine.owner.reason
        await due(database, lease)
        assert (await engine.reaper.sweep(Trigger.COMMAND)).claimed == 0
        await engine.owner.adopt(caller=CALLER)
        assert await engine.owner.check() is Ownership.CONFIRMED
        assert (await engine.reaper.sweep(Trigger.COMMAND)).reclaimed == 1


async def test_what_was_archived_is_not_missed(
    database: Database, database_url: str, store: ListingStore
) -> None:
    async with two_engines(database, database_url, store) as (engine, other):
        await engine.log.append([note("repo/1")])
        told: dict[str, JSON] = {"last_position": 1, "hash": "00" * 32}
        await other.log.append([note(ARCHIVE_STREAM, type="log.archived", data=told)])
        await as_owner(database, "DELETE FROM events WHERE position = 1")
        assert await engine.log.lost() is None
        await as_owner(database, "DELETE FROM events WHERE position = 2")
        assert await engine.log.lost() == 1


async def test_a_mark_that_moves_on_while_it_is_checked_is_no_lost_tail(
    database: Database, database_url: str, store: ListingStore
) -> None:
    """Another replica appended and published between our two looks."""
    async with two_engines(database, database_url, store) as (engine, other):
        busy = False

        async def meanwhile(key: str) -> None:
            nonlocal busy
            if key == OWNER_KEY and not busy:
                busy = True
                await other.log.append([note("repo/1")])
                await other.owner.check()
                busy = True

        store.on_get = meanwhile
        assert await engine.owner.check() is Ownership.CONFIRMED, engine.owner.reason


async def test_nothing_is_reaped_before_the_mark_was_read(
    database: Database, store: ListingStore
) -> None:
    async with LeaseEngine(database, store, QUICK, watch=False) as engine:
        assert engine.owner.state is Ownership.UNKNOWN
        assert not engine.owner.may_reap()


async def test_nothing_is_reaped_in_doubt(database: Database, store: ListingStore) -> None:
    async with engine_on(database, store) as engine:
        lease = await granted(engine)
        await due(database, lease)
        engine.owner.doubt()
        assert (await engine.reaper.sweep(Trigger.COMMAND)).claimed == 0
        assert await engine.owner.check() is Ownership.CONFIRMED
        assert (await engine.reaper.sweep(Trigger.COMMAND)).reclaimed == 1


async def test_a_look_that_began_before_the_doubt_does_not_end_it(
    database: Database, store: ListingStore
) -> None:
    """It may have seen the server that is gone."""
    async with engine_on(database, store) as engine:

        async def lost(key: str) -> None:
            if key == OWNER_KEY:
                engine.owner.doubt()

        store.on_get = lost
        assert await engine.owner.check() is Ownership.UNKNOWN
        store.on_get = None
        assert await engine.owner.check() is Ownership.CONFIRMED


async def test_a_doubt_ends_no_pause(database: Database, store: ListingStore) -> None:
    async with engine_on(database, store) as engine:
        store.blobs[OWNER_KEY] = Mark(log_id=OTHER_LOG, position=0, hash="").dump()
        assert await engine.owner.check() is Ownership.PAUSED
        engine.owner.doubt()
        assert (engine.owner.state, OTHER_LOG in engine.owner.reason) == (Ownership.PAUSED, True)


async def test_the_mark_is_read_anew_when_the_connection_was_lost(
    database: Database, store: ListingStore
) -> None:
    """Another server may have taken the database's place; the next comparison is far away."""
    async with engine_on(database, store, watch=True) as engine:
        later = Mark(log_id=engine.log_id, position=1_000, hash="")
        store.blobs[OWNER_KEY] = later.dump()
        await end_instance_sessions(database)
        await until(lambda: is_in(engine, Ownership.PAUSED))
        assert "newest events are lost" in engine.owner.reason
        assert mark_of(store) == later


async def test_what_fell_due_in_doubt_is_reaped_when_the_mark_agrees(
    database: Database, store: ListingStore
) -> None:
    async with engine_on(database, store, watch=True) as engine:
        lease = await granted(engine, ttl_seconds=0.2)
        await end_instance_sessions(database)
        await until_reclaimed(engine, lease)
        assert engine.owner.state is Ownership.CONFIRMED


async def is_in(engine: LeaseEngine, state: Ownership) -> bool:
    return engine.owner.state is state


async def test_a_store_that_is_out_at_the_start_is_asked_again(
    database: Database, store: ListingStore
) -> None:
    asked = 0

    async def once(_key: str) -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise StoreUnavailable

    store.on_get = once
    async with LeaseEngine(database, store, QUICK) as engine:
        lease = await granted(engine)

        async def reclaimed() -> bool:
            return (await loaded(engine, lease)).state is LeaseState.RECLAIMED

        await until(reclaimed)
    assert asked >= 2


async def test_a_store_that_cannot_list_is_taken_as_ours(database: Database) -> None:
    store = MemoryStore()
    async with engine_on(database, store) as engine:
        assert engine.owner.state is Ownership.CONFIRMED
    assert store.blobs == {}
