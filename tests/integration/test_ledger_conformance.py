"""One suite for PostgreSQL's ledger and the simulated one, so that the simulation cannot drift."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

import pytest

from leases.chain import StoredEvent, event_hash, genesis
from leases.clock import SystemClock
from leases.codec import SCHEMA_VERSION, dump, encode
from leases.errors import DatabaseUnavailable
from leases.ids import new_event_id, new_mpack_id, new_token
from leases.ledger import FailedAttempt, Ledger, Session
from leases.lessor import lease_stream
from leases.model import (
    Event,
    Lease,
    LeaseActivated,
    LeaseAdopted,
    LeaseCleanupFailed,
    LeaseKind,
    LeaseReclaimed,
    LeaseRenewed,
    LeaseReserved,
    LeaseRevoked,
    LeaseState,
    LeaseStuck,
    Outcome,
    Trigger,
    storage_key,
)
from leases.postgres_ledger import PostgresLedger
from tests.leasing import another_database, until
from tests.simulation.ledger import SimulatedLedger, SimulatedSession
from tests.simulation.records import Records

T = TypeVar("T")
LIMIT = timedelta(seconds=30)
AT_ONCE = timedelta()
HOUR = timedelta(hours=1)


class _StraightWire:
    """Nothing is slow and nothing gets lost."""

    async def call(self, name: str, work: Callable[[], T]) -> T:
        await asyncio.sleep(0)
        return work()

    def opened(self, session: SimulatedSession) -> None:
        """Nobody breaks it."""

    def ended(self, session: SimulatedSession) -> None:
        session.freed()


@pytest.fixture(params=["postgresql", "simulated"])
async def ledger(request: pytest.FixtureRequest) -> AsyncIterator[Ledger]:
    async with AsyncExitStack() as stack:
        if request.param == "postgresql":
            url = request.getfixturevalue("database_url")
            yield PostgresLedger(await stack.enter_async_context(another_database(url)))
        else:
            yield SimulatedLedger(Records(SystemClock().now, new_event_id()), _StraightWire())


@asynccontextmanager
async def session_of(ledger: Ledger) -> AsyncIterator[Session]:
    """A session on a connection of its own, which goes with it."""
    another = ledger.another()
    try:
        async with another.session() as session:
            yield session
    finally:
        await another.close()


class Asked:
    """One event of a call, with its guards."""

    def __init__(
        self,
        stream: str,
        type_: str = "repo.noted",
        data: dict[str, Any] | None = None,
        *,
        expected: int | None = 0,
        group: int | None = None,
        not_after: datetime | None = None,
        claim: str | None = None,
        event_id: UUID | None = None,
        request_id: str | None = None,
    ) -> None:
        self.event_id = event_id or new_event_id()
        self.group = group
        self.rest = (stream, expected, self.event_id, type_, SCHEMA_VERSION, dump(data or {}))
        self.guards = ("test", request_id, not_after, claim)


async def append(ledger: Ledger, *asked: Asked) -> Any:
    """The answer's row; every event is a group of its own unless it names one."""
    rows = [
        (number if one.group is None else one.group, *one.rest, *one.guards)
        for number, one in enumerate(asked)
    ]
    return await ledger.append([list(column) for column in zip(*rows, strict=True)])


def fact(mpack_id: str, event: Event, **options: Any) -> Asked:
    return Asked(lease_stream(mpack_id), event.type, dict(encode(event)), **options)


async def now_of(ledger: Ledger) -> datetime:
    now: datetime = (await ledger.head())["now"]
    return now


async def new_lease(
    ledger: Ledger, *, due_in: timedelta = -AT_ONCE, active: bool = False
) -> tuple[str, int]:
    """A lease's id and version; it is due so long from now."""
    mpack_id, now = new_mpack_id(), await now_of(ledger)
    reserved = LeaseReserved(
        kind=LeaseKind.PACK,
        repo_id="repo-1",
        storage_key=storage_key("log", mpack_id),
        granted_at=now - HOUR,
        delete_at=now + due_in,
    )
    assert (await append(ledger, fact(mpack_id, reserved)))["verdicts"] == ["ok"]
    if not active:
        return mpack_id, 1
    activated = LeaseActivated(
        sha256="ab",
        size_bytes=3,
        activated_at=now,
        expires_at=now + due_in,
        delete_at=now + due_in,
        ttl_seconds=1,
    )
    answer = await append(ledger, fact(mpack_id, activated, expected=1))
    assert answer["verdicts"] == ["ok"]
    return mpack_id, 2


async def claim(ledger: Ledger, name: str = "free.1", count: int = 10) -> tuple[UUID, list[str]]:
    token = new_event_id()
    await ledger.claim(count, name, limit=LIMIT, token=token, overdue=AT_ONCE)
    return token, [one.lease.mpack_id for one in await ledger.claimed(name, token)]


def reclaimed(now: datetime) -> LeaseReclaimed:
    return LeaseReclaimed(
        outcome=Outcome.DELETED, trigger=Trigger.ALARM, reclaimed_at=now, lateness_ms=1
    )


# The log. ----------------------------------------------------------------------------------------


async def test_an_empty_log_has_a_head_and_nothing_else(ledger: Ledger) -> None:
    head = await ledger.head()
    assert (head["position"], head["hash"]) == (0, genesis(head["log_id"]))
    assert await ledger.read(after=0, limit=10) == []
    newest = await ledger.newest("repo/1")
    told = [newest[name] for name in ("version", "type", "actor", "data", "log_id")]
    assert told == [0, None, None, None, head["log_id"]]


async def test_positions_are_gapless_and_the_chain_holds(ledger: Ledger) -> None:
    first = await append(ledger, Asked("repo/1"), Asked("repo/2", request_id="r"))
    second = await append(ledger, Asked("repo/1", expected=1), Asked("repo/3", expected=None))
    assert (first["positions"], first["versions"]) == ([1, 2], [1, 1])
    assert (second["positions"], second["versions"]) == ([3, 4], [2, 1])
    head = await ledger.head()
    previous = genesis(head["log_id"])
    for event in await ledger.read(after=0, limit=10):
        assert event.hash == event_hash(previous, event)
        previous = event.hash
    assert (head["position"], head["hash"]) == (4, previous)
    assert head["recorded_at"] == second["appended_at"]


async def test_the_feed_and_a_stream_are_read_behind_a_place(ledger: Ledger) -> None:
    for version in range(3):
        await append(ledger, Asked("repo/1", expected=version), Asked("repo/2", expected=version))

    def places(events: Any) -> list[tuple[int, str, int]]:
        return [(one.position, one.stream, one.version) for one in events]

    assert places(await ledger.read(after=4, limit=10)) == [(5, "repo/1", 3), (6, "repo/2", 3)]
    assert places(await ledger.read(after=0, limit=1)) == [(1, "repo/1", 1)]
    stream = await ledger.read(after=1, limit=1, stream="repo/2")
    assert places(stream) == [(4, "repo/2", 2)]
    assert await ledger.read(after=0, limit=9, stream="repo/9") == []


async def test_links_are_the_events_as_they_are_hashed(ledger: Ledger) -> None:
    await append(ledger, Asked("repo/1"), Asked("repo/2"), Asked("repo/3"))
    events = await ledger.read(after=0, limit=10)
    links = await ledger.links(after=1, until=2, limit=10)
    assert [tuple(link)[:9] + tuple(link)[11:] for link in links] == [
        (
            *(event.position, event.event_id.bytes, event.stream, event.version, event.type),
            *(event.schema_version, event.data, event.data_sha, event.actor, event.hash),
        )
        for event in events[1:2]
    ]
    assert len(await ledger.links(after=0, until=3, limit=2)) == 2


async def test_the_newest_event_of_a_stream(ledger: Ledger) -> None:
    await append(ledger, Asked("repo/1", data={"n": 1}))
    await append(ledger, Asked("repo/1", "repo.other", {"n": 2}, expected=1))
    newest = await ledger.newest("repo/1")
    told = [newest[name] for name in ("version", "type", "actor", "data")]
    assert told == [2, "repo.other", "test", '{"n":2}']


async def test_streams_are_known_by_what_they_hold(ledger: Ledger) -> None:
    await append(ledger, Asked("repo/1"), Asked("repo/2", "repo.other"))
    asked = ["repo/1", "repo/2", "repo/3"]
    assert await ledger.streams_with(asked) == {"repo/1", "repo/2"}
    assert await ledger.streams_with(asked, type="repo.other") == {"repo/2"}
    assert await ledger.streams_with([]) == set()


async def test_a_version_that_is_not_expected_is_refused(ledger: Ledger) -> None:
    await append(ledger, Asked("repo/1"))
    answer = await append(ledger, Asked("repo/1"), Asked("repo/2", expected=1), Asked("repo/3"))
    assert answer["verdicts"] == ["version", "version", "ok"]
    assert (answer["positions"], answer["versions"]) == ([None, None, 2], [None, None, 1])


async def test_nothing_appended_has_no_time(ledger: Ledger) -> None:
    answer = await append(ledger, Asked("repo/1", expected=3))
    assert (answer["verdicts"], answer["appended_at"]) == (["version"], None)


@pytest.mark.parametrize("expected", [0, None], ids=["a version", "any version"])
async def test_the_same_event_again_is_a_repeat(ledger: Ledger, expected: int | None) -> None:
    one = Asked("repo/1", expected=expected)
    first = await append(ledger, one)
    again = await append(ledger, one)
    assert again["verdicts"] == ["repeat"]
    (place,) = await ledger.places([one.event_id, new_event_id()])
    assert tuple(place) == (1, 1, first["appended_at"])


async def test_a_group_is_taken_whole_or_not_at_all(ledger: Ledger) -> None:
    await append(ledger, Asked("repo/1"))
    answer = await append(
        ledger, Asked("repo/1", group=1), Asked("repo/2", group=1), Asked("repo/3", group=2)
    )
    assert answer["verdicts"] == ["version", "group", "ok"]
    assert len(await ledger.read(after=0, limit=9)) == 2


async def test_a_deadline_that_has_passed_refuses(ledger: Ledger) -> None:
    now = await now_of(ledger)
    answer = await append(
        ledger, Asked("repo/1", not_after=now - HOUR), Asked("repo/2", not_after=now + HOUR)
    )
    assert answer["verdicts"] == ["deadline", "ok"]


# The lease table. --------------------------------------------------------------------------------


async def lease_in(ledger: Ledger, mpack_id: str) -> Lease:
    leases, _now = await ledger.leases([mpack_id])
    return leases[mpack_id]


async def test_a_lease_that_is_not_there(ledger: Ledger) -> None:
    mpack_id = new_mpack_id()
    leases, now = await ledger.leases([mpack_id])
    assert (leases, now.tzinfo is not None) == ({}, True)
    assert (await ledger.leases([]))[0] == {}
    assert await ledger.attempts(mpack_id) == 0
    await ledger.forget_attempts(mpack_id)


async def test_the_table_is_the_fold(ledger: Ledger) -> None:
    mpack_id, version = await new_lease(ledger, due_in=HOUR, active=True)
    now = await now_of(ledger)
    steps: list[Event] = [
        LeaseRenewed(expires_at=now + 2 * HOUR, delete_at=now + 3 * HOUR),
        LeaseRevoked(revoked_at=now, expires_at=now, delete_at=now, reason="test"),
        LeaseCleanupFailed(error="e"),
        LeaseStuck(error="e", attempts=8),
        reclaimed(now),
    ]
    told = []
    for number, step in enumerate(steps):
        await append(ledger, fact(mpack_id, step, expected=version + number))
        lease = await lease_in(ledger, mpack_id)
        told.append((lease.state.value, lease.expires_at, lease.delete_at, lease.stuck))
    assert told == [
        ("active", now + 2 * HOUR, now + 3 * HOUR, False),
        ("active", now, now, False),
        ("active", now, now, False),
        ("active", now, now, True),
        ("reclaimed", now, now, False),
    ]
    lease = (await ledger.leases([mpack_id, "x", mpack_id]))[0][mpack_id]
    assert (lease.outcome, lease.lateness_ms, lease.revoked_at) == (Outcome.DELETED, 1, now)
    assert (lease.sha256, lease.size_bytes, lease.version) == ("ab", 3, version + len(steps))


async def test_an_adopted_blob_has_a_row(ledger: Ledger) -> None:
    mpack_id, now = new_mpack_id(), await now_of(ledger)
    adopted = LeaseAdopted(
        kind=LeaseKind.PACK,
        repo_id="",
        storage_key=storage_key("log", mpack_id),
        granted_at=now,
        delete_at=now + HOUR,
    )
    await append(ledger, fact(mpack_id, adopted))
    lease = await lease_in(ledger, mpack_id)
    assert (lease.state, lease.delete_at, lease.version) == (LeaseState.RESERVED, now + HOUR, 1)


async def test_active_leases_are_listed_in_order_behind_a_place(ledger: Ledger) -> None:
    ids = sorted([(await new_lease(ledger, due_in=HOUR, active=True))[0] for _ in range(3)])
    await new_lease(ledger, due_in=HOUR)
    later = await now_of(ledger) + HOUR
    found = await ledger.active(before=later, after="", limit=9)
    assert [tuple(row) for row in found] == [(name, storage_key("log", name)) for name in ids]
    found = await ledger.active(before=later, after=ids[0], limit=1)
    assert [row[0] for row in found] == [ids[1]]
    assert await ledger.active(before=later - 2 * HOUR, after="", limit=9) == []


# Claims. -----------------------------------------------------------------------------------------


async def test_what_is_due_is_claimed_once_oldest_first(ledger: Ledger) -> None:
    young, _ = await new_lease(ledger, due_in=timedelta(seconds=-1))
    old, _ = await new_lease(ledger, due_in=timedelta(seconds=-9), active=True)
    await new_lease(ledger, due_in=HOUR)
    looked = await ledger.due(9, overdue=AT_ONCE, named=9)
    assert (looked.count, looked.mpack_ids) == (2, [old, young])
    assert looked.deadline == (await lease_in(ledger, old)).delete_at < looked.now
    assert (await ledger.due(1, overdue=AT_ONCE, named=9)).mpack_ids == [old]
    looked = await ledger.due(None, overdue=AT_ONCE, named=1)
    assert (looked.count, looked.mpack_ids) == (2, [old])
    looked = await ledger.due(None, overdue=HOUR, named=9)
    assert (looked.count, looked.deadline, looked.mpack_ids) == (0, None, [])
    token = new_event_id()
    count, now = await ledger.claim(1, "free.1", limit=LIMIT, token=token, overdue=AT_ONCE)
    assert (count, now <= await now_of(ledger)) == (1, True)
    (one,) = await ledger.claimed("free.1", token)
    assert (one.lease.mpack_id, one.attempts) == (old, 0)
    assert await ledger.claimed("free.2", token) == []
    assert (await claim(ledger))[1] == [young]
    assert (await claim(ledger))[1] == []


async def test_only_what_is_overdue_enough_is_claimed(ledger: Ledger) -> None:
    await new_lease(ledger, due_in=timedelta(seconds=-5))
    token, minute = new_event_id(), timedelta(minutes=1)
    assert (await ledger.due(9, overdue=minute, named=9)).count == 0
    count, _now = await ledger.claim(9, "free.1", limit=LIMIT, token=token, overdue=minute)
    assert count == 0


async def test_a_claim_that_has_ended_by_its_limit_is_taken_over(ledger: Ledger) -> None:
    mpack_id, _ = await new_lease(ledger)
    token = new_event_id()
    await ledger.claim(9, "free.1", limit=-HOUR, token=token, overdue=AT_ONCE)
    other, ids = await claim(ledger, "free.2")
    assert ids == [mpack_id]
    assert await ledger.claimed("free.1", token) == []
    await ledger.give_back([mpack_id], token, pause_seconds=0)
    assert len(await ledger.claimed("free.2", other)) == 1


async def test_a_live_claim_stands_in_the_way_of_a_move(ledger: Ledger) -> None:
    mpack_id, _ = await new_lease(ledger)
    now = await now_of(ledger)
    renewal = LeaseRenewed(delete_at=now + HOUR)
    token, _ids = await claim(ledger)
    answer = await append(ledger, fact(mpack_id, renewal, expected=1, claim="none"))
    assert answer["verdicts"] == ["claim"]
    await ledger.give_back([mpack_id], token, pause_seconds=0)
    answer = await append(ledger, fact(mpack_id, renewal, expected=1, claim="none"))
    assert answer["verdicts"] == ["ok"]


async def test_a_claim_that_has_ended_stands_in_nobodys_way(ledger: Ledger) -> None:
    mpack_id, _ = await new_lease(ledger)
    await ledger.claim(9, "free.1", limit=-HOUR, token=new_event_id(), overdue=AT_ONCE)
    renewal = LeaseRenewed(delete_at=await now_of(ledger) + HOUR)
    answer = await append(ledger, fact(mpack_id, renewal, expected=1, claim="none"))
    assert answer["verdicts"] == ["ok"]


async def test_only_the_claims_own_token_records_the_end(ledger: Ledger) -> None:
    mpack_id, _ = await new_lease(ledger)
    end = reclaimed(await now_of(ledger))
    token, _ids = await claim(ledger)
    other = str(new_event_id())
    answer = await append(ledger, fact(mpack_id, end, expected=1, claim=other))
    assert answer["verdicts"] == ["claim"]
    answer = await append(ledger, fact(mpack_id, end, expected=1, claim=str(token)))
    assert answer["verdicts"] == ["ok"]
    assert await ledger.claimed("free.1", token) == []
    assert (await claim(ledger))[1] == []
    answer = await append(ledger, fact(mpack_id, end, expected=2, claim=str(token)))
    assert answer["verdicts"] == ["claim"]


async def test_a_renewal_under_a_claim_without_the_guard_keeps_the_claim(ledger: Ledger) -> None:
    mpack_id, _ = await new_lease(ledger)
    token, _ids = await claim(ledger)
    noted = LeaseCleanupFailed(error="e")
    answer = await append(ledger, fact(mpack_id, noted, expected=1, claim=str(token)))
    assert answer["verdicts"] == ["ok"]
    assert len(await ledger.claimed("free.1", token)) == 1


async def test_what_is_given_back_waits(ledger: Ledger) -> None:
    mpack_id, _ = await new_lease(ledger)
    token, _ids = await claim(ledger)
    await ledger.give_back([mpack_id], new_event_id(), pause_seconds=0)
    assert (await claim(ledger))[1] == []
    await ledger.give_back([mpack_id], token, pause_seconds=3600)
    look = await ledger.look_ahead()
    assert look.due is not None
    assert HOUR - timedelta(seconds=9) < look.due - look.now <= HOUR
    await ledger.forget_attempts(mpack_id)
    assert (await claim(ledger))[1] == [mpack_id]


async def test_failures_are_counted_under_the_claim_alone(ledger: Ledger) -> None:
    mpack_id, _ = await new_lease(ledger)
    token, _ids = await claim(ledger)
    failure = FailedAttempt(mpack_id=mpack_id, attempts=3, error="e", retry_seconds=0)
    await ledger.count_failures([failure], new_event_id())
    assert await ledger.attempts(mpack_id) == 0
    await ledger.forget_attempts(mpack_id)
    await ledger.count_failures([failure], token)
    assert await ledger.attempts(mpack_id) == 3
    token, ids = await claim(ledger)
    assert ids == [mpack_id]
    assert [one.attempts for one in await ledger.claimed("free.1", token)] == [3]
    await ledger.release(["free.1"], [token])
    await ledger.forget_attempts(mpack_id)
    assert await ledger.attempts(mpack_id) == 0


async def test_claims_are_released_by_name_and_token(ledger: Ledger) -> None:
    await new_lease(ledger)
    token, ids = await claim(ledger)
    await ledger.release(["free.2"], [token])
    await ledger.release(["free.1"], [new_event_id()])
    assert (await claim(ledger))[1] == []
    await ledger.release(["live.1", "free.1"], [token])
    assert (await claim(ledger))[1] == ids


# Who is alive, and when to look. -----------------------------------------------------------------


async def test_with_nothing_open_nothing_is_due(ledger: Ledger) -> None:
    look = await ledger.look_ahead()
    assert (look.due, look.live, look.dead_claims) == (None, 0, False)
    await new_lease(ledger, due_in=HOUR)
    mpack_id, _ = await new_lease(ledger, due_in=timedelta(minutes=5))
    lease = await lease_in(ledger, mpack_id)
    assert (await ledger.look_ahead()).due == lease.delete_at


async def test_a_dead_instances_claims_are_freed(ledger: Ledger) -> None:
    mpack_id, _ = await new_lease(ledger)
    instance = new_token(4)
    key = int(instance, 16) - (1 << 32) * (int(instance, 16) >= 1 << 31)
    async with session_of(ledger) as session:
        assert await session.lock(key)
        await session.ping()
        await claim(ledger, f"live.{instance}")
        look = await ledger.look_ahead()
        assert (look.live, look.dead_claims) == (1, False)
        assert await ledger.free_dead_claims() == 0
        assert (await claim(ledger))[1] == []
        session.end()

    async def seen_dead() -> bool:
        return (await ledger.look_ahead()).dead_claims

    await until(seen_dead)
    assert await ledger.free_dead_claims() == 1
    assert (await claim(ledger))[1] == [mpack_id]


async def test_a_claim_of_no_session_outlives_everybody(ledger: Ledger) -> None:
    await new_lease(ledger)
    await claim(ledger, "free.00000001")
    assert not (await ledger.look_ahead()).dead_claims
    assert await ledger.free_dead_claims() == 0


async def test_a_lock_is_held_by_one_session(ledger: Ledger) -> None:
    async with session_of(ledger) as one, session_of(ledger) as other:
        assert await one.lock(7)
        assert not await other.lock(7)
        assert await other.lock(-8)
        assert (await ledger.look_ahead()).live == 2


async def test_silence_in_a_session_is_an_outage(ledger: Ledger) -> None:
    async def be_silent() -> None:
        async with session_of(ledger) as session:
            await session.ping()
            raise TimeoutError

    with pytest.raises(DatabaseUnavailable):
        await be_silent()


async def test_two_events_of_one_stream_in_a_call_are_a_bug(ledger: Ledger) -> None:
    with pytest.raises(Exception, match="duplicate"):
        await append(ledger, Asked("repo/1"), Asked("repo/1"))
    assert await ledger.read(after=0, limit=9) == []
    answer = await append(ledger, Asked("repo/1"), Asked("repo/1", expected=1))
    assert answer["verdicts"] == ["ok", "version"]


async def test_what_a_ledger_says_of_an_event(ledger: Ledger) -> None:
    one = Asked("repo/1", data={"ü": [1]}, request_id="r-1")
    answer = await append(ledger, one)
    (event,) = await ledger.read(after=0, limit=1)
    assert isinstance(event, StoredEvent)
    assert (event.event_id, event.data, event.request_id) == (one.event_id, '{"ü":[1]}', "r-1")
    assert (event.recorded_at, event.actor) == (answer["appended_at"], "test")
