"""The log's append function and its batcher, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from leases.audit import Auditor
from leases.clock import SystemClock
from leases.database import Database
from leases.errors import (
    ClaimHeld,
    Conflict,
    DatabaseUnavailable,
    DeadlinePassed,
    VersionConflict,
)
from leases.log import EventLog, Recorded
from leases.model import Trigger
from leases.postgres_ledger import PostgresLedger
from tests.fakes import ListingStore
from tests.invariants import check_invariants
from tests.leasing import connection_to, due, engine_on, granted, lock_waiters, note

TOKEN = UUID(int=7)


@pytest.fixture
async def log(database: Database) -> AsyncIterator[EventLog]:
    log = EventLog(PostgresLedger(database), SystemClock())
    task = asyncio.ensure_future(log.run())
    yield log
    task.cancel()
    await asyncio.wait([task])


async def feed(log: EventLog) -> list[tuple[str, int]]:
    return [(event.stream, event.version) for event in await log.read(after=0, limit=1000)]


async def test_an_event_is_stored_as_it_was_given(log: EventLog) -> None:
    event = note("repo/1", data={"b": "ü", "a": None}, request_id="q")
    (recorded,) = await log.append([event])
    (stored,) = await log.read(after=0, limit=10)
    assert recorded == Recorded(position=1, version=1, recorded_at=stored.recorded_at)
    assert (stored.event_id, stored.stream, stored.actor) == (event.event_id, "repo/1", "test")
    assert (stored.data, stored.request_id) == ('{"a":null,"b":"ü"}', "q")


async def test_reading_a_stream_goes_on_after_a_version(log: EventLog) -> None:
    for expected in range(3):
        await log.append([note("repo/1", expected=expected)])
    assert [e.version for e in await log.read_stream("repo/1", after_version=1)] == [2, 3]


@pytest.mark.parametrize("expected", [0, 2, 7])
async def test_another_version_is_a_conflict(log: EventLog, expected: int) -> None:
    await log.append([note("repo/1")])
    with pytest.raises(VersionConflict):
        await log.append([note("repo/1", expected=expected)])
    assert await feed(log) == [("repo/1", 1)]


async def test_no_expected_version_takes_any(log: EventLog) -> None:
    for _ in range(3):
        await log.append([note("repo/1", expected=None)])
    assert await feed(log) == [("repo/1", 1), ("repo/1", 2), ("repo/1", 3)]


async def test_a_passed_deadline_is_refused_by_the_databases_clock(log: EventLog) -> None:
    now = (await log.head())["now"]
    await log.append([note("repo/1", not_after=now + timedelta(hours=1))])
    with pytest.raises(DeadlinePassed):
        await log.append([note("repo/2", not_after=now)])


async def test_a_deadline_that_passes_while_waiting_for_the_head_is_refused(
    log: EventLog, database_url: str
) -> None:
    """The reason for `clock_timestamp()`: `now()` stands still at the time of the call."""
    async with connection_to(database_url) as holder:
        await holder.execute("BEGIN; SELECT FROM event_head FOR UPDATE")
        not_after = (await log.head())["now"] + timedelta(milliseconds=50)
        waiting = asyncio.ensure_future(log.append([note("repo/1", not_after=not_after)]))
        await lock_waiters(holder, 1)
        await holder.execute("SELECT pg_sleep(0.06)")
        await holder.execute("COMMIT")
        with pytest.raises(DeadlinePassed):
            await waiting


async def claim(database: Database, mpack_id: str, *, seconds: float = 30) -> None:
    await database.execute(
        "UPDATE mpack_leases SET claimed_by = 'free.x', claim_token = $2,"
        " claimed_until = clock_timestamp() + $3 WHERE mpack_id = $1",
        mpack_id,
        TOKEN,
        timedelta(seconds=seconds),
    )


@pytest.mark.parametrize(
    "claimed, guard, refused",
    [
        (False, {"no_claim": True}, False),
        (True, {"no_claim": True}, True),
        (True, {"claim_token": TOKEN}, False),
        (True, {"claim_token": UUID(int=8)}, True),
        (False, {"claim_token": TOKEN}, True),
    ],
    ids=[
        "none needed, none there",
        "none allowed, one there",
        "the right token",
        "another token",
        "a token, none there",
    ],
)
async def test_the_claim_guard(
    database: Database, claimed: bool, guard: dict[str, Any], refused: bool
) -> None:
    async with engine_on(database, ListingStore()) as engine:
        lease = await granted(engine, ttl_seconds=60)
        if claimed:
            await claim(database, lease.mpack_id)
        event = note(f"lease/{lease.mpack_id}", expected=2, type="lease.cleanup_failed", **guard)
        if refused:
            with pytest.raises(ClaimHeld):
                await engine.log.append([event])
        else:
            await engine.log.append([event])


async def test_a_claim_past_its_limit_stands_in_nobodys_way(database: Database) -> None:
    async with engine_on(database, ListingStore()) as engine:
        lease = await granted(engine, ttl_seconds=60)
        await claim(database, lease.mpack_id, seconds=-1)
        await engine.log.append([note(f"lease/{lease.mpack_id}", expected=2, no_claim=True)])


async def test_a_group_is_appended_whole_or_not_at_all(log: EventLog) -> None:
    await log.append([note("repo/taken")])
    with pytest.raises(VersionConflict) as caught:
        await log.append([note("repo/a"), note("repo/taken"), note("repo/b")])
    assert caught.value.fields["stream"] == "repo/taken"
    assert await feed(log) == [("repo/taken", 1)]


async def test_losers_of_a_call_do_not_hurt_the_others(log: EventLog) -> None:
    await log.append([note("repo/taken")])
    answers = await log.append_each([note("repo/a"), note("repo/taken"), note("repo/b")])
    assert [isinstance(answer, Conflict) for answer in answers] == [False, True, False]
    assert [stream for stream, _version in await feed(log)] == ["repo/taken", "repo/a", "repo/b"]


async def test_an_event_sent_twice_is_one_event_and_a_success(log: EventLog) -> None:
    """The answer to the first was lost."""
    event = note("repo/1")
    (first,) = await log.append([event])
    await log.append([note("repo/1", expected=1)])
    assert await log.append([event]) == [first]
    assert await feed(log) == [("repo/1", 1), ("repo/1", 2)]


async def test_a_group_sent_twice_is_one_group(log: EventLog) -> None:
    group = [note("repo/1"), note("repo/2")]
    assert await log.append(group) == await log.append(group)
    assert await feed(log) == [("repo/1", 1), ("repo/2", 1)]


async def test_an_event_for_any_version_sent_twice_is_one_event(log: EventLog) -> None:
    event = note("repo/1", expected=None)
    (first,) = await log.append([event])
    assert await log.append([event]) == [first]
    assert await feed(log) == [("repo/1", 1)]


async def test_another_event_at_that_place_is_still_a_conflict(log: EventLog) -> None:
    event = note("repo/1")
    await log.append([event])
    with pytest.raises(VersionConflict):
        await log.append([note("repo/1")])


async def test_callers_of_one_stream_keep_their_order(log: EventLog) -> None:
    """Each expects what the one before it leaves; all wait at once."""
    events = [note("repo/1", expected=number) for number in range(20)]
    await asyncio.gather(*(log.append([event]) for event in events))
    stored = await log.read_stream("repo/1")
    assert [event.event_id for event in stored] == [event.event_id for event in events]


async def test_waiting_callers_share_a_call(log: EventLog, database: Database) -> None:
    heard = await notified(database, lambda: appended_at_once(log, 50))
    assert len(heard) <= 3
    assert int(heard[-1]) == 50


async def appended_at_once(log: EventLog, count: int) -> None:
    await asyncio.gather(*(log.append([note(f"repo/{n}")]) for n in range(count)))


async def notified(database: Database, work: Callable[[], Any]) -> list[str]:
    """What `mpack_events` says while this runs."""
    heard: list[str] = []
    async with database.driver() as listener:

        def hear(*told: object) -> None:
            heard.append(str(told[-1]))

        await listener.add_listener("mpack_events", hear)
        await work()
        await listener.execute("SELECT 1")
        await listener.remove_listener("mpack_events", hear)
    return heard


async def test_one_notification_a_call_and_none_for_nothing(
    log: EventLog, database: Database
) -> None:
    async def work() -> None:
        await log.append([note("repo/1"), note("repo/2")])
        with pytest.raises(VersionConflict):
            await log.append([note("repo/1")])

    assert await notified(database, work) == ["2"]


POISON = {
    "a NaN in the data": {"data": {"n": float("nan")}},
    "a version that is no integer": {"expected_version": 2**40},
    "half a character": {"actor": "\ud800"},
    "a NUL": {"actor": "\x00"},
    "no actor": {"actor": None},
    "data that is no JSON value": {"data": {"n": object()}},
    "a lease's fact without its fields": {"stream": "lease/x", "type": "lease.reserved"},
    "a NUL in a lease's fact": {"stream": "lease/x", "data": {"reason": "\x00"}},
}


@pytest.mark.parametrize("poison", POISON.values(), ids=POISON)
async def test_a_poisonous_event_hurts_only_its_caller(
    log: EventLog, poison: dict[str, Any]
) -> None:
    events = [note("repo/a"), replace(note("repo/p"), **poison), note("repo/b")]
    first, second, third = await log.append_each(events)
    assert isinstance(second, BaseException)
    assert not isinstance(second, DatabaseUnavailable)
    assert not isinstance(first, BaseException)
    assert not isinstance(third, BaseException)
    assert await feed(log) == [("repo/a", 1), ("repo/b", 1)]


async def test_a_caller_that_hangs_up_while_waiting_appends_nothing(
    log: EventLog, database_url: str
) -> None:
    async with connection_to(database_url) as holder:
        await holder.execute("BEGIN; SELECT FROM event_head FOR UPDATE")
        first = asyncio.ensure_future(log.append([note("repo/first")]))
        await lock_waiters(holder, 1)
        gone = asyncio.ensure_future(log.append([note("repo/gone")]))
        await asyncio.wait([gone], timeout=0)
        gone.cancel()
        await asyncio.wait([gone])
        await holder.execute("COMMIT")
    await first
    assert await feed(log) == [("repo/first", 1)]


async def test_whoever_still_waits_at_the_end_is_told(
    database: Database, database_url: str
) -> None:
    """In a call, waiting for it, or coming too late: nobody hangs, nobody looks cancelled."""
    log = EventLog(PostgresLedger(database), SystemClock())
    task = asyncio.ensure_future(log.run())
    async with connection_to(database_url) as holder:
        await holder.execute("BEGIN; SELECT FROM event_head FOR UPDATE")
        under_way = asyncio.ensure_future(log.append([note("repo/1")]))
        await lock_waiters(holder, 1)
        waiting = asyncio.ensure_future(log.append([note("repo/2")]))
        await asyncio.wait([waiting], timeout=0)
        task.cancel()
        await asyncio.wait([task])
        late = asyncio.ensure_future(log.append([note("repo/3")]))
        done, _pending = await asyncio.wait([under_way, waiting, late], timeout=2)
        assert {type(future.exception()) for future in done} == {DatabaseUnavailable}
        assert len(done) == 3


async def test_append_in_a_transaction_of_the_callers(log: EventLog, database: Database) -> None:
    async with database.engine.connect() as connection:
        await log.append_in(connection, [note("repo/1")])
        await connection.rollback()
    async with database.engine.begin() as connection:
        (recorded,) = await log.append_in(connection, [note("repo/1")])
    assert recorded.position == 1
    assert await feed(log) == [("repo/1", 1)]


async def test_a_refused_append_in_a_transaction_is_a_conflict(
    log: EventLog, database: Database
) -> None:
    await log.append([note("repo/1")])
    async with database.engine.begin() as connection:
        with pytest.raises(VersionConflict):
            await log.append_in(connection, [note("repo/0"), note("repo/1")])


async def test_a_transaction_run_again_by_key_finds_its_own_event(
    log: EventLog, database: Database
) -> None:
    """The answer to its COMMIT was lost."""
    event = note("repo/1")
    answers: list[Sequence[Recorded]] = []
    for _ in range(2):
        async with database.engine.begin() as connection:
            answers.append(await log.append_in(connection, [event]))
    assert answers[0] == answers[1]
    assert await feed(log) == [("repo/1", 1)]


@pytest.mark.parametrize("table", ["events", "events_p000000"])
@pytest.mark.parametrize("change", ["UPDATE {} SET actor = 'x'", "DELETE FROM {}", "TRUNCATE {}"])
async def test_the_log_is_append_only(
    log: EventLog, engine: AsyncEngine, table: str, change: str
) -> None:
    await log.append([note("repo/1")])
    async with engine.begin() as connection:
        with pytest.raises(Exception, match="append-only"):
            await connection.execute(text(change.format(table)))


SMALL_PARTITIONS = """CREATE OR REPLACE FUNCTION event_partition_size() RETURNS bigint
LANGUAGE sql IMMUTABLE AS 'SELECT 16'"""


async def test_partitions_are_made_ahead_and_the_chain_goes_across(
    log: EventLog, database: Database, engine: AsyncEngine
) -> None:
    async with engine.begin() as connection:
        for statement in (
            "DROP TABLE events_p000000",
            SMALL_PARTITIONS,
            "SELECT make_event_partition(0)",
        ):
            await connection.execute(text(statement))
    for number in range(5):
        group = [note(f"repo/{number}.{turn}") for turn in range(11)]
        await log.append(group)
    rows = await database.fetch("SELECT DISTINCT tableoid::regclass::text AS name FROM events")
    assert {row["name"] for row in rows} == {f"events_p{number:06}" for number in range(4)}
    verdict = await Auditor(database, log).verify()
    assert (verdict.problems, verdict.events) == ([], 55)


async def test_recorded_times_never_run_backwards(log: EventLog, engine: AsyncEngine) -> None:
    """The database's machine may set its clock back."""
    async with engine.begin() as connection:
        await connection.execute(
            text("UPDATE event_head SET recorded_at = recorded_at + interval '1 hour'")
        )
    head = await log.head()
    (recorded,) = await log.append([note("repo/1")])
    assert recorded.recorded_at == head["recorded_at"]


async def test_sixteen_writers_and_a_reader_see_one_gapless_feed(
    log: EventLog, database: Database, engine: AsyncEngine
) -> None:
    """Half of them through the batcher, half in transactions of their own."""
    finished = asyncio.Event()

    async def write(writer: int) -> None:
        for number in range(25):
            event = note(f"repo/{writer}", expected=number)
            if writer % 2:
                await log.append([event])
            else:
                async with engine.begin() as connection:
                    await log.append_in(connection, [event])

    async def follow() -> int:
        position = 0
        while True:
            last = finished.is_set()
            page = await log.read(after=position, limit=1000)
            assert [e.position for e in page] == list(range(position + 1, position + len(page) + 1))
            position += len(page)
            if last:
                return position

    follower = asyncio.ensure_future(follow())
    await asyncio.gather(*(write(writer) for writer in range(16)))
    finished.set()
    assert await follower == 400
    assert (await Auditor(database, log).verify()).problems == []


async def test_the_batcher_survives_a_lost_connection(log: EventLog, database: Database) -> None:
    await log.append([note("repo/1")])
    await end_other_sessions(database)
    await log.append([note("repo/1", expected=1)])
    assert await feed(log) == [("repo/1", 1), ("repo/1", 2)]


async def end_other_sessions(database: Database) -> None:
    await database.fetch(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


async def test_a_call_whose_answer_is_lost_is_one_event(engine: AsyncEngine) -> None:
    """The batcher sends it again; the event's id makes that the same event."""
    database = _LosesAnAnswer(engine)
    log = EventLog(PostgresLedger(database), SystemClock())
    task = asyncio.ensure_future(log.run())
    (recorded,) = await log.append([note("repo/1")])
    task.cancel()
    await asyncio.wait([task])
    assert (recorded.position, database.lost) == (1, 1)
    assert await feed(log) == [("repo/1", 1)]
    await database.close()


class _LosesAnAnswer(Database):
    """Its first append is carried out, but nobody hears of it."""

    lost = 0

    def held(self) -> Database:
        return self

    async def fetch(self, sql: str, *args: Any) -> list[asyncpg.Record]:
        rows = await super().fetch(sql, *args)
        if "append_events" in sql and not self.lost:
            self.lost += 1
            raise DatabaseUnavailable(cause="the answer was lost")
        return rows


async def test_nothing_of_this_breaks_an_invariant(database: Database) -> None:
    store = ListingStore()
    async with engine_on(database, store) as engine:
        lease = await granted(engine)
        await due(database, lease)
        await engine.reaper.sweep(Trigger.COMMAND)
    await check_invariants(database, store)
