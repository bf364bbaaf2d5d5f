"""Sixteen writers on one log: whatever they do, it is one gapless chain, and nothing is lost.

Each example is a plan: what each writer appends, to which streams, with which expectation. They run
at once over two processes' worth of batchers; the log then holds exactly what was confirmed.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from leases.audit import Auditor
from leases.chain import StoredEvent
from leases.clock import SystemClock
from leases.database import Database
from leases.errors import VersionConflict
from leases.log import EventLog, NewEvent
from leases.postgres_ledger import PostgresLedger
from tests.databases import NewDatabase
from tests.leasing import another_database, note

WRITERS = 16
STREAMS = [f"repo/{number}" for number in range(4)]
# A group of events: distinct streams, and whether each expects the version it saw last.
GROUPS = st.lists(
    st.tuples(st.sampled_from(STREAMS), st.booleans()),
    min_size=1,
    max_size=3,
    unique_by=lambda part: part[0],
)
PLANS = st.lists(st.lists(GROUPS, min_size=1, max_size=4), min_size=WRITERS, max_size=WRITERS)
Plan = Sequence[Sequence[Sequence[tuple[str, bool]]]]


async def write_all(url: str, plan: Plan) -> None:
    async with another_database(url) as one, another_database(url) as other:
        logs = [EventLog(PostgresLedger(database), SystemClock()) for database in (one, other)]
        confirmed: list[NewEvent] = []
        refused: list[NewEvent] = []
        seen: Counter[str] = Counter()

        async def write(log: EventLog, groups: Sequence[Sequence[tuple[str, bool]]]) -> None:
            for group in groups:
                events = [
                    note(stream, expected=seen[stream] if strict else None)
                    for stream, strict in group
                ]
                try:
                    places = await log.append(events)
                except VersionConflict:
                    refused.extend(events)
                    continue
                confirmed.extend(events)
                for event, place in zip(events, places, strict=True):
                    seen[event.stream] = max(seen[event.stream], place.version)

        async with asyncio.TaskGroup() as running:
            tasks = [running.create_task(log.run()) for log in logs]
            async with asyncio.TaskGroup() as writers:
                for number, groups in enumerate(plan):
                    writers.create_task(write(logs[number % 2], groups))
            for task in tasks:
                task.cancel()
        await check(one, confirmed, refused)


async def check(
    database: Database, confirmed: Sequence[NewEvent], refused: Sequence[NewEvent]
) -> None:
    log = EventLog(PostgresLedger(database), SystemClock())
    events: list[StoredEvent] = list(await log.read(after=0, limit=100_000))
    assert [event.position for event in events] == list(range(1, len(events) + 1))
    assert {event.event_id for event in events} == {event.event_id for event in confirmed}
    assert len(events) == len(confirmed)
    assert not {event.event_id for event in events} & {event.event_id for event in refused}
    for stream in STREAMS:
        versions = [event.version for event in events if event.stream == stream]
        assert versions == list(range(1, len(versions) + 1))
    assert (await Auditor(database, log).verify()).problems == []


# Sixteen writers and a database each.
@settings(max_examples=max(10, settings().max_examples // 5))
@given(plan=PLANS)
def test_sixteen_writers_make_one_chain(new_database: NewDatabase, plan: Plan) -> None:
    with new_database() as url:
        asyncio.run(write_all(url, plan))
