"""The proof: whatever was changed behind the log's back is named, and the table can be mended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from leases.audit import Published, Verdict
from leases.chain import event_hash, genesis
from leases.clock import SystemClock
from leases.database import Database
from leases.engine import LeaseEngine
from leases.ids import new_mpack_id
from leases.log import EventLog
from leases.model import Trigger
from leases.outside import check_store, published_in_store
from leases.owner import Mark
from leases.postgres_ledger import PostgresLedger
from tests.fakes import ListingStore
from tests.integration.commands import Commands
from tests.invariants import check_invariants
from tests.leasing import as_owner, due, engine_on, granted, granted_many, note, work_of

ROW = "(SELECT min(mpack_id) FROM mpack_leases)"


@pytest.fixture
async def engine(database: Database, store: ListingStore) -> AsyncIterator[LeaseEngine]:
    """Three leases, one of them reclaimed: seven events."""
    async with engine_on(database, store) as engine:
        lease = await granted(engine)
        await granted_many(engine, 2, ttl_seconds=60)
        await due(database, lease)
        await engine.reaper.sweep(Trigger.COMMAND)
        yield engine


async def test_an_untouched_log_verifies(engine: LeaseEngine, store: ListingStore) -> None:
    verdict = await engine.auditor.verify()
    head = await engine.log.head()
    assert (verdict.problems, verdict.events) == ([], 7)
    assert (verdict.head_position, verdict.head_hash) == (7, head["hash"].hex())
    await check_invariants(engine.database, store)


async def test_an_empty_log_verifies(database: Database, store: ListingStore) -> None:
    async with engine_on(database, store) as engine:
        assert (await engine.auditor.verify()).ok


@pytest.mark.parametrize("count", [1, 4, 6, 7, 100])
async def test_the_newest_events_verify_alone(engine: LeaseEngine, count: int) -> None:
    verdict = await engine.auditor.verify_tail(count)
    assert (verdict.problems, verdict.events) == ([], min(count, 7))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET data = '{}' WHERE position = 6",
        "DELETE FROM events WHERE position = 6",
        "DELETE FROM events WHERE position = 4",
        "DELETE FROM events WHERE position >= 4",
        "UPDATE event_head SET hash = sha256('x')",
    ],
)
async def test_a_change_among_the_newest_is_found(engine: LeaseEngine, statement: str) -> None:
    """By the running service, within minutes; what is older is for `audit verify`."""
    await as_owner(engine.database, statement)
    assert not (await engine.auditor.verify_tail(3)).ok


TAMPERING = {
    "data edited": (
        """UPDATE events SET data = replace(data, 'repo-1', 'repo-2') WHERE position = 3""",
        "event 3: its data is not what was recorded",
    ),
    "data edited with its digest": (
        """UPDATE events SET data = '{}', data_sha = sha256('{}') WHERE position = 3""",
        "event 3: its hash does not follow",
    ),
    "actor edited": (
        "UPDATE events SET actor = 'somebody' WHERE position = 3",
        "event 3: its hash does not follow",
    ),
    "time edited": (
        "UPDATE events SET recorded_at = recorded_at - interval '1 day' WHERE position = 3",
        "event 3 was recorded before",
    ),
    "hash edited": (
        "UPDATE events SET hash = sha256('x') WHERE position = 3",
        "event 4: its hash does not follow",
    ),
    "one deleted": (
        "DELETE FROM events WHERE position = 3",
        "event 4 follows 2: events are missing",
    ),
    "the last deleted": (
        "DELETE FROM events WHERE position = 7",
        "the log's rows end at 6, its head says 7",
    ),
    "all deleted": ("DELETE FROM events", "the log's rows end at 0, its head says 7"),
    "one added beyond the head": (
        """INSERT INTO events SELECT 8, gen_random_uuid(), 'lease/new', 1, type, 1, data, data_sha,
        actor, NULL, recorded_at, hash FROM events WHERE position = 1""",
        "stream lease/new: its versions are out of turn",
    ),
    "one moved to another stream": (
        "UPDATE events SET stream = 'repo/x' WHERE position = 3",
        "stream repo/x: its versions are out of turn",
    ),
    "the head's hash edited": (
        "UPDATE event_head SET hash = sha256('x')",
        "the head's hash is not the last event's",
    ),
    "the head set back": (
        "UPDATE event_head SET position = 6, hash = (SELECT hash FROM events WHERE position = 6)",
        "the log's rows end at 7, its head says 6",
    ),
    "a lease edited": (
        f"UPDATE mpack_leases SET delete_at = now() WHERE mpack_id = {ROW}",
        "differs from the log",
    ),
    "a lease deleted": (
        f"DELETE FROM mpack_leases WHERE mpack_id = {ROW}",
        "is missing from the table",
    ),
    "a lease invented": (
        """INSERT INTO mpack_leases (mpack_id, kind, repo_id, storage_key, state, granted_at,
        delete_at, version, last_position)
        VALUES ('x', 'pack', '', 'transient/x', 'active', now(), now(), 1, 1)""",
        "lease x is not in the log",
    ),
    "a stream's version edited": (
        "UPDATE event_streams SET version = version + 1 WHERE last_position = 7",
        "its versions are out of turn",
    ),
}


@pytest.mark.parametrize("name", TAMPERING)
async def test_tampering_is_named(engine: LeaseEngine, name: str) -> None:
    statement, told = TAMPERING[name]
    await as_owner(engine.database, statement)
    problems = (await engine.auditor.verify()).problems
    assert any(told in problem for problem in problems), problems


SHIFTED = """UPDATE events SET position = 1000 + position WHERE position >= 3;
UPDATE events SET position = position - 999 WHERE position > 1000;
INSERT INTO events SELECT 3, gen_random_uuid(), 'repo/x', 1, 'repo.noted', 1, data, data_sha,
actor, NULL, recorded_at, hash FROM events WHERE position = 2;
INSERT INTO event_streams VALUES ('repo/x', 1, 3);
UPDATE event_streams SET last_position = last_position + 1 WHERE last_position >= 3
AND stream <> 'repo/x'; UPDATE event_head SET position = 8"""
SWAPPED = """UPDATE events SET position = 1000 + position WHERE position IN (3, 4);
UPDATE events SET position = 1007 - position WHERE position > 1000"""


@pytest.mark.parametrize(
    "statements, told",
    [
        (SHIFTED, ["event 3: its hash does not follow", "event 4: its hash does not follow"]),
        (SWAPPED, ["event 3: its hash does not follow", "event 4: its hash does not follow"]),
    ],
    ids=["inserted", "swapped"],
)
async def test_an_event_in_another_place_is_named(
    engine: LeaseEngine, statements: str, told: list[str]
) -> None:
    await as_owner(engine.database, statements)
    problems = (await engine.auditor.verify()).problems
    for words in told:
        assert any(words in problem for problem in problems), problems


async def rewritten(database: Database, *, actor: str) -> None:
    """As somebody with the owner's rights who knows how the chain is made."""
    log = EventLog(PostgresLedger(database), SystemClock())
    head = await log.head()
    previous, statements = genesis(head["log_id"]), []
    for recorded in await log.read(after=0, limit=1000):
        event = replace(recorded, actor=actor)
        previous = event_hash(previous, event)
        statements.append(
            f"UPDATE events SET actor = '{actor}', hash = '\\x{previous.hex()}'"
            f" WHERE position = {event.position}"
        )
    statements.append(f"UPDATE event_head SET hash = '\\x{previous.hex()}'")
    await as_owner(database, *statements)


async def published(engine: LeaseEngine) -> list[Published]:
    """What the store's mark says."""
    return published_in_store(await engine.owner.mark(), log_id=engine.log_id, verdict=Verdict())


async def test_a_log_that_was_rewritten_as_a_whole_is_not_the_published_one(
    engine: LeaseEngine,
) -> None:
    """All by itself it is in order, and so is the table: only what stands outside can tell."""
    await engine.owner.check()
    heads = await published(engine)
    assert [head.position for head in heads] == [7]
    await rewritten(engine.database, actor="somebody")
    assert (await engine.auditor.verify()).problems == []
    told = ["event 7 was published in the store with another hash: the log was rewritten"]
    assert (await engine.auditor.verify(published=heads)).problems == told
    assert (await engine.auditor.verify_tail(2, published=heads)).problems == told
    assert (await engine.owner.check()).value == "paused"


async def test_a_tail_that_was_cut_off_cleanly_is_missed_by_the_published_head(
    engine: LeaseEngine,
) -> None:
    await engine.owner.check()
    heads = await published(engine)
    await as_owner(
        engine.database,
        "DELETE FROM events WHERE position = 7",
        "UPDATE event_head SET position = 6, hash = (SELECT hash FROM events WHERE position = 6)",
        """UPDATE event_streams AS s SET version = e.version, last_position = e.position
        FROM (SELECT DISTINCT ON (stream) stream, version, position FROM events
              ORDER BY stream, version DESC) AS e WHERE e.stream = s.stream""",
    )
    await engine.auditor.rebuild()
    assert (await engine.auditor.verify()).problems == []
    problems = (await engine.auditor.verify(published=heads)).problems
    assert problems == [
        "the log ends at 6, but event 7 was published in the store: its end was cut off"
    ]


async def test_a_mark_of_another_log_is_a_problem(engine: LeaseEngine) -> None:
    verdict, mark = Verdict(), Mark(log_id="another", position=1, hash="00")
    assert published_in_store(mark, log_id=engine.log_id, verdict=verdict) == []
    assert verdict.problems == [f"the store belongs to the log another, this is {engine.log_id}"]


async def test_the_store_and_the_table_are_compared(
    engine: LeaseEngine, store: ListingStore
) -> None:
    verdict = Verdict()
    await check_store(engine.reconciler, verdict)
    assert (verdict.problems, verdict.notes) == ([], [])
    gone = await granted(engine, ttl_seconds=60)
    await store.delete(gone.storage_key)
    await store.put(f"transient/{engine.log_id}/{new_mpack_id()}", b"x")
    await store.put("transient/strange", b"x")
    await check_store(engine.reconciler, verdict)
    assert verdict.problems == [
        "blobs in the store without a lease: 1",
        "the store holds a key that is none of ours: transient/strange",
        f"the blob of an open lease is gone: {gone.storage_key}",
    ]


def test_the_command_names_what_was_done_and_says_no(commands: Commands) -> None:
    for _ in range(2):
        commands.grant(ended=True)
    commands.run("sweep")
    told = commands.json("audit", "verify")
    assert (told["ok"], told["problems"], told["notes"]) == (True, [], [])
    head = f"{told['head_position']}:{told['head_hash']}"
    assert commands.json("audit", "verify", "--newest", "3", "--head", head)["events"] == 3
    assert "cut off" in commands.run("audit", "verify", "--head", f"99:{'0' * 64}", exits=1).stdout
    assert "rewritten" in commands.run("audit", "verify", "--head", f"2:{'0' * 64}", exits=1).stdout
    commands.run("audit", "verify", "--head", "2", exits=2)
    commands.view.write(["transient/strange"], b"x")
    assert "none of ours" in commands.run("audit", "verify", exits=1).stdout
    assert commands.json("audit", "verify", "--no-store")["ok"] is True
    commands.sql_script(
        "SET session_replication_role = replica; UPDATE events SET data = '{}' WHERE position = 2"
    )
    result = commands.run("audit", "verify", "--no-store", exits=1)
    assert "problem  event 2: its data is not what was recorded" in result.stdout
    assert commands.json("audit", "verify", "--newest", "2", "--no-store")["ok"] is True


async def test_a_long_list_of_problems_is_cut(engine: LeaseEngine) -> None:
    await engine.log.append_each([note(f"repo/{n}") for n in range(150)])
    await as_owner(engine.database, "UPDATE events SET actor = 'somebody'")
    assert len((await engine.auditor.verify()).problems) == 100


WRONG = [
    "UPDATE mpack_leases SET state = 'active', expires_at = now(), outcome = NULL, sha256 = 'x'",
    f"DELETE FROM mpack_leases WHERE mpack_id = {ROW}",
    TAMPERING["a lease invented"][0],
]


async def test_a_rebuild_mends_the_fold_and_leaves_the_work_alone(
    engine: LeaseEngine, store: ListingStore
) -> None:
    lease = await granted(engine, ttl_seconds=60)
    await engine.database.execute(
        "UPDATE mpack_leases SET attempts = 3, last_error = 'it broke', claimed_by = 'free.x',"
        " claimed_until = now(), claim_token = gen_random_uuid() WHERE mpack_id = $1",
        lease.mpack_id,
    )
    before = dict(await work_of(engine.database, lease))
    await as_owner(engine.database, *WRONG)
    assert await engine.auditor.rebuild() == 5
    assert (await engine.auditor.verify()).problems == []
    after = dict(await work_of(engine.database, lease))
    assert after | {"now": None} == before | {"now": None}
    assert await engine.auditor.rebuild() == 0
    await check_invariants(engine.database, store, at_rest=False)


async def test_a_rebuild_from_nothing(engine: LeaseEngine, store: ListingStore) -> None:
    await as_owner(engine.database, "TRUNCATE mpack_leases")
    assert await engine.auditor.rebuild() == 3
    await check_invariants(engine.database, store)


async def test_a_rebuild_while_appends_go_on(engine: LeaseEngine, store: ListingStore) -> None:
    finished = asyncio.Event()

    async def grant() -> int:
        count = 0
        while not finished.is_set():
            await granted(engine, ttl_seconds=60)
            count += 1
        return count

    granting = [asyncio.ensure_future(grant()) for _ in range(4)]
    for _ in range(5):
        await as_owner(engine.database, f"DELETE FROM mpack_leases WHERE mpack_id = {ROW}")
        assert await engine.auditor.rebuild() == 1
        assert (await engine.auditor.verify()).ok
    finished.set()
    assert sum(await asyncio.gather(*granting)) > 0
    await check_invariants(engine.database, store)
