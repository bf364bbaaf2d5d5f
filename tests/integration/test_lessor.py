"""Granting, moving and ending leases, and the races in which the database decides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from leases.database import Database
from leases.decide import decide, guards
from leases.engine import LeaseEngine
from leases.errors import (
    ClaimHeld,
    DeadlinePassed,
    InvalidRequest,
    LeaseEnded,
    LeaseMissing,
)
from leases.ids import new_mpack_id
from leases.lessor import new_lease_event
from leases.log import NewEvent
from leases.model import (
    ActivateLease,
    Command,
    Lease,
    LeaseKind,
    LeaseState,
    RenewLease,
    RevokeLease,
    Trigger,
)
from tests.fakes import ListingStore
from tests.invariants import check_invariants
from tests.leasing import (
    BLOB_SHA256,
    CALLER,
    QUICK,
    another_database,
    connection_to,
    due,
    engine_on,
    granted,
    loaded,
    lock_waiters,
    reserved,
    types_of,
    until_activity,
)

LIMIT = timedelta(seconds=QUICK.upload_limit_seconds)


def kind_of(command: Command) -> str:
    return type(command).__name__


@pytest.fixture
async def engine(database: Database, store: ListingStore) -> AsyncIterator[LeaseEngine]:
    """Every test of this module ends with its invariants."""
    async with engine_on(database, store) as engine:
        yield engine
    await check_invariants(database, store)


async def activate(engine: LeaseEngine, lease: Lease, ttl_seconds: float = 0.05) -> Lease:
    return await engine.lessor.activate(
        lease.mpack_id, sha256=BLOB_SHA256, size_bytes=1, ttl_seconds=ttl_seconds, caller=CALLER
    )


async def renew(engine: LeaseEngine, lease: Lease, ttl_seconds: float) -> Lease:
    return await engine.lessor.renew(lease.mpack_id, ttl_seconds=ttl_seconds, caller=CALLER)


async def revoke(engine: LeaseEngine, lease: Lease) -> Lease:
    return await engine.lessor.revoke(lease.mpack_id, reason="test", caller=CALLER)


async def test_a_reservation_stands_before_the_blob(engine: LeaseEngine) -> None:
    mpack_id = new_mpack_id()
    lease = await engine.lessor.reserve(
        mpack_id=mpack_id,
        kind=LeaseKind.UPLOAD,
        repo_id="r",
        caller=CALLER,
        cache_key="c",
        object_id="o",
    )
    assert lease == await loaded(engine, lease)
    assert lease.storage_key == f"transient/{engine.log_id}/{mpack_id}"
    assert (lease.state, lease.delete_at - lease.granted_at) == (LeaseState.RESERVED, LIMIT)
    assert (lease.kind, lease.cache_key, lease.object_id) == (LeaseKind.UPLOAD, "c", "o")


async def test_a_fact_names_actor_request_and_replica(engine: LeaseEngine) -> None:
    lease = await reserved(engine)
    (event,) = await engine.log.read_stream(f"lease/{lease.mpack_id}")
    assert (event.actor, event.request_id) == ("test", "request-1")
    assert f'"replica":"{engine.instance.instance_id}"' in event.data


async def test_an_id_is_reserved_once(engine: LeaseEngine) -> None:
    lease = await reserved(engine)
    with pytest.raises(InvalidRequest):
        await engine.lessor.reserve(
            mpack_id=lease.mpack_id, kind=LeaseKind.PACK, repo_id="r", caller=CALLER
        )


async def test_there_is_nothing_to_do_to_an_unknown_lease(engine: LeaseEngine) -> None:
    with pytest.raises(LeaseMissing):
        await engine.lessor.revoke(new_mpack_id(), reason="test", caller=CALLER)
    assert (await engine.lessor.load(new_mpack_id()))[0] is None


async def test_a_life_as_the_answers_tell_it_is_the_row(
    engine: LeaseEngine, store: ListingStore
) -> None:
    lease = await granted(engine, ttl_seconds=60)
    assert lease == await loaded(engine, lease)
    renewed = await renew(engine, lease, 90)
    assert renewed == await loaded(engine, lease)
    assert renewed.expires_at is not None
    assert lease.expires_at is not None
    assert renewed.expires_at > lease.expires_at
    assert await revoke(engine, lease) == await loaded(engine, lease)


async def test_extending_moves_a_reservations_deadline_on(engine: LeaseEngine) -> None:
    lease = await reserved(engine)
    extended = await engine.lessor.extend(lease.mpack_id, caller=CALLER)
    assert extended.delete_at > lease.delete_at
    assert extended == await loaded(engine, lease)


async def test_a_ttl_is_cut_to_the_longest_one(database: Database, store: ListingStore) -> None:
    policy = replace(QUICK, lease_life_max_seconds=1000)
    async with engine_on(database, store, policy) as engine:
        lease = await granted(engine, ttl_seconds=1e9)
    assert lease.expires_at == lease.granted_at + timedelta(seconds=1000)


async def test_a_renewal_for_longer_than_possible_is_cut_not_refused(
    database: Database, store: ListingStore
) -> None:
    """The guard is a part of the life that is given, not of the one that was wished."""
    policy = replace(QUICK, share_guard_ratio=0.05)
    async with engine_on(database, store, policy) as engine:
        lease = await granted(engine, ttl_seconds=7200)
        renewed = await renew(engine, lease, 1e9)
    assert renewed.expires_at == lease.granted_at + timedelta(days=1)


async def test_activating_again_changes_nothing(engine: LeaseEngine, store: ListingStore) -> None:
    """The answer to the first was lost."""
    lease = await granted(engine, ttl_seconds=60)
    assert await activate(engine, lease, 90) == lease


async def test_an_expired_lease_is_not_renewed(engine: LeaseEngine, database: Database) -> None:
    lease = await granted(engine)
    await due(database, lease)
    with pytest.raises(LeaseEnded):
        await renew(engine, lease, 60)


async def test_many_renewals_at_once_all_succeed(engine: LeaseEngine) -> None:
    lease = await granted(engine, ttl_seconds=60)
    answers = await asyncio.gather(*(renew(engine, lease, 61 + n) for n in range(4)))
    assert max(a.delete_at for a in answers) == (await loaded(engine, lease)).delete_at


# Races. Somebody holds the lock for which the loser waits. --------------------------------------


async def claimed_by_hand(connection: asyncpg.Connection[asyncpg.Record], lease: Lease) -> None:
    """What a reap's claim does to the row, in whatever transaction this is."""
    await connection.execute(
        "UPDATE mpack_leases SET claimed_by = 'free.x', claim_token = gen_random_uuid(),"
        " claimed_until = clock_timestamp() + interval '30 s' WHERE mpack_id = $1",
        lease.mpack_id,
    )


async def unclaim(database: Database) -> None:
    await database.execute(
        "UPDATE mpack_leases SET claimed_by = NULL, claim_token = NULL, claimed_until = NULL"
    )


async def decided(engine: LeaseEngine, lease: Lease, command: Command) -> NewEvent:
    """What the lessor would append now."""
    found, now = await engine.lessor.load(lease.mpack_id)
    assert found is not None
    (event,) = decide(found, command, now=now)
    guard = guards(found, command)
    return new_lease_event(
        lease.mpack_id,
        event,
        caller=CALLER,
        replica="test",
        expected_version=found.version,
        not_after=guard.not_after,
        no_claim=guard.no_claim,
    )


RENEW = RenewLease(ttl_seconds=60, guard_seconds=0, grace_seconds=0, lease_life_max_seconds=86400)
ACTIVATE = ActivateLease(
    sha256=BLOB_SHA256,
    size_bytes=1,
    ttl_seconds=60,
    grace_seconds=0,
    lease_life_max_seconds=86400,
)
# The upload limit is what makes a reservation due.
BRIEF = replace(QUICK, upload_limit_seconds=0.6, upload_margin_seconds=0.01)


@pytest.mark.parametrize("command", [RENEW, RevokeLease(reason="test"), ACTIVATE], ids=kind_of)
async def test_a_claim_that_commits_first_wins(
    engine: LeaseEngine, database: Database, database_url: str, command: Command
) -> None:
    """The append waits for the claimed row, and then sees the claim."""
    begun = command is ACTIVATE
    lease = await (reserved(engine) if begun else granted(engine, ttl_seconds=30))
    async with connection_to(database_url) as reaper:
        await reaper.execute("BEGIN")
        await claimed_by_hand(reaper, lease)
        waiting = asyncio.ensure_future(
            engine.lessor.carry_out(lease.mpack_id, command, caller=CALLER)
        )
        await lock_waiters(reaper, 1)
        await reaper.execute("COMMIT")
        with pytest.raises(ClaimHeld):
            await waiting
    await unclaim(database)


@pytest.mark.parametrize("command", [RENEW, ACTIVATE], ids=kind_of)
async def test_a_move_that_is_recorded_first_cannot_be_claimed_from_under_it(
    database: Database, store: ListingStore, command: Command
) -> None:
    """The deadline it moves passes before its commit: the claim skips the locked row, and
    afterwards sees the new deadline.
    """
    async with engine_on(database, store, BRIEF) as engine:
        begun = command is ACTIVATE
        lease = await (reserved(engine) if begun else granted(engine, ttl_seconds=0.6))
        await store.put(lease.storage_key, b"x")
        async with database.engine.begin() as connection:
            await engine.log.append_in(connection, [await decided(engine, lease, command)])
            await due(database, lease)
            assert (await engine.reaper.reap_once(Trigger.ALARM)).claimed == 0
        assert (await engine.reaper.reap_once(Trigger.ALARM)).claimed == 0
        assert (await loaded(engine, lease)).state is LeaseState.ACTIVE
    await check_invariants(database, store)


@pytest.mark.parametrize("command", [RENEW, ACTIVATE], ids=kind_of)
async def test_a_move_decided_in_time_but_recorded_too_late_is_refused(
    database: Database, database_url: str, store: ListingStore, command: Command
) -> None:
    """The reap claims and deletes while the move still waits for the log's head."""
    async with engine_on(database, store, BRIEF) as engine:
        begun = command is ACTIVATE
        lease = await (reserved(engine) if begun else granted(engine, ttl_seconds=0.6))
        async with connection_to(database_url) as holder:
            await holder.execute("BEGIN; SELECT FROM event_head FOR UPDATE")
            moving = asyncio.ensure_future(
                engine.log.append([await decided(engine, lease, command)])
            )
            await lock_waiters(holder, 1)
            await due(database, lease)
            deleted = _noted_deletion(store)
            reaping = asyncio.ensure_future(engine.reaper.reap_once(Trigger.ALARM))
            await deleted.wait()
            await holder.execute("COMMIT")
            with pytest.raises(DeadlinePassed):
                await moving
            assert (await reaping).reclaimed == 1
        assert (await loaded(engine, lease)).state is LeaseState.RECLAIMED
    await check_invariants(database, store)


def _noted_deletion(store: ListingStore) -> asyncio.Event:
    deleted = asyncio.Event()

    async def note_it(_key: str) -> None:
        deleted.set()

    store.on_delete = note_it
    return deleted


async def test_a_renewal_that_loses_to_a_revocation_is_refused(
    engine: LeaseEngine, database_url: str
) -> None:
    lease = await granted(engine, ttl_seconds=60)
    revoking, renewing = await _both_decided(
        database_url, revoke(engine, lease), renew(engine, lease, 90)
    )
    assert isinstance(revoking, Lease)
    assert isinstance(renewing, LeaseEnded)
    assert await types_of(engine, lease) == ["lease.reserved", "lease.activated", "lease.revoked"]


async def test_a_revocation_that_loses_to_a_renewal_is_decided_again(
    engine: LeaseEngine, database_url: str
) -> None:
    lease = await granted(engine, ttl_seconds=60)
    renewing, revoking = await _both_decided(
        database_url, renew(engine, lease, 90), revoke(engine, lease)
    )
    assert isinstance(renewing, Lease)
    assert isinstance(revoking, Lease)
    assert (await types_of(engine, lease))[2:] == ["lease.renewed", "lease.revoked"]
    found = await loaded(engine, lease)
    assert found.delete_at == found.expires_at == found.revoked_at


async def _both_decided(
    url: str, first: Coroutine[Any, Any, Lease], second: Coroutine[Any, Any, Lease]
) -> tuple[Lease | BaseException, Lease | BaseException]:
    """Both decide on the same version; the first one's append is first in line."""
    async with connection_to(url) as holder:
        await holder.execute("BEGIN; SELECT FROM event_head FOR UPDATE")
        leading = asyncio.ensure_future(first)
        await lock_waiters(holder, 1)
        # Its decision is one more look-up; its append then waits.
        look_up = "datname = current_database() AND state = 'idle' AND query LIKE '%AS asked (id)%'"
        last = await holder.fetchval(f"SELECT state_change FROM pg_stat_activity WHERE {look_up}")
        following = asyncio.ensure_future(second)
        await until_activity(holder, f"{look_up} AND state_change > '{last}'")
        await holder.execute("COMMIT")
        return await asyncio.gather(leading, following, return_exceptions=True)


async def test_replicas_that_reserve_one_id_get_one_lease(
    engine: LeaseEngine, database_url: str, store: ListingStore
) -> None:
    mpack_id = new_mpack_id()
    async with another_database(database_url) as elsewhere, engine_on(elsewhere, store) as other:
        answers = await asyncio.gather(
            *(
                one.lessor.reserve(
                    mpack_id=mpack_id, kind=LeaseKind.PACK, repo_id="r", caller=CALLER
                )
                for one in (engine, other)
            ),
            return_exceptions=True,
        )
    assert sorted(type(answer).__name__ for answer in answers) == ["InvalidRequest", "Lease"]
