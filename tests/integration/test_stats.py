"""How the leases stand, in one statement, and in words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from leases.database import Database
from leases.model import Trigger
from leases.pause import Pauses
from leases.stats import Stats, read_stats
from tests.fakes import ListingStore
from tests.leasing import BLOB, CALLER, due, engine_on, granted, reserved


async def test_an_empty_gateway(database: Database) -> None:
    stats = await read_stats(database)
    assert dict(stats.by_state) == {"reserved": 0, "active": 0}
    assert (stats.overdue, stats.bytes_held, stats.head_position) == (0, 0, 0)
    assert not stats.is_not_done
    assert stats.in_words() == "Nothing is overdue."


async def test_open_leases_are_counted_and_closed_ones_are_not(database: Database) -> None:
    async with engine_on(database, ListingStore()) as engine:
        gone, late = [await granted(engine) for _ in range(2)]
        await due(database, late)
        await engine.reaper.sweep(Trigger.COMMAND, limit=1)
        await granted(engine, ttl_seconds=60)
        await reserved(engine)
        stats = await read_stats(database)
        assert gone.delete_at < late.delete_at
        assert dict(stats.by_state) == {"reserved": 1, "active": 2}
        assert stats.overdue == 1
        assert 0 < stats.oldest_overdue_seconds < 60
        assert stats.bytes_held == 2 * len(BLOB)
        assert stats.head_position == (await engine.log.head())["position"]
        assert stats.replicas == 1
        assert stats.log_id == engine.log_id


async def test_a_pause_is_told(database: Database) -> None:
    async with engine_on(database, ListingStore()) as engine:
        pauses = Pauses(engine.log)
        assert await pauses.pause(reason="moving house", caller=CALLER)
        assert not await pauses.pause(reason="again", caller=CALLER)
        stats = await read_stats(database)
        assert (stats.paused, stats.paused_by, stats.pause_reason) == (True, "test", "moving house")
        assert await pauses.resume(caller=CALLER)
        assert not await pauses.resume(caller=CALLER)
        assert not (await read_stats(database)).paused
        assert str(await pauses.look()) == "not paused"


async def test_what_nobody_has_claimed_for_long_is_not_being_done(database: Database) -> None:
    async with engine_on(database, ListingStore()) as engine:
        lease = await granted(engine, ttl_seconds=60)
        later = "UPDATE mpack_leases SET delete_at = delete_at - interval '1 hour'"
        await database.execute(later)
        assert (await read_stats(database)).is_not_done
        waits = "UPDATE mpack_leases SET next_attempt_at = clock_timestamp() + interval '1 minute'"
        await database.execute(waits)
        stats = await read_stats(database)
        assert (stats.overdue, stats.unattended, stats.is_not_done) == (1, 0, False)
        assert lease.mpack_id


SOME = Stats(
    by_state={}, overdue=1, oldest_overdue_seconds=61.2, unattended=1, put_off=0, claimed=0,
    stuck=0, bytes_held=0, head_position=0, log_id="", replicas=0, paused=False, paused_by=None,
    paused_at=None, pause_reason=None,
)  # fmt: skip


@pytest.mark.parametrize(
    "stats, words",
    [
        (SOME, "1 lease is overdue and not being done, the oldest for 61 s; no replica is running"),
        (replace(SOME, overdue=1500, replicas=2), "1,500 leases are overdue and not being done"),
        (replace(SOME, replicas=2), "doctor"),
        (replace(SOME, replicas=2, put_off=1), "the store did not answer, and is probed"),
        (replace(SOME, paused=True, paused_by="x", pause_reason="y"), "paused by x: y"),
        (replace(SOME, claimed=1), "1 lease is overdue and being done, the oldest for 61 s."),
        (replace(SOME, unattended=0, put_off=1), "61 s; 1 put off: the store did not answer."),
        (replace(SOME, unattended=0, stuck=1), "61 s; 1 stuck: `mpack-gateway lease list --state"),
        (replace(SOME, mark_problem="its tail is lost"), "s; reaping is paused: its tail is lost."),
        (
            replace(SOME, overdue=0, unattended=0, mark_problem="its tail is lost"),
            "Nothing is overdue. Reaping is paused: its tail is lost.",
        ),
    ],
    ids=[
        *("no replica", "many", "unknown", "store out", "paused", "being done", "put off"),
        *("stuck", "lost", "idle"),
    ],
)
def test_the_words(stats: Stats, words: str) -> None:
    assert words in stats.in_words()
