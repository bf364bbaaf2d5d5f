"""Random commands on a real log: the database's fold, table and view, is the Python one."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import create_async_engine

from leases.clock import SystemClock
from leases.codec import decode
from leases.database import Database
from leases.decide import evolve
from leases.errors import Failure
from leases.ids import new_mpack_id
from leases.lessor import LEASE_COLUMNS, Lessor, lease_of, lease_stream
from leases.log import EventLog
from leases.lookups import Lookups
from leases.model import AdoptLease, Command, Lease, ReserveLease
from leases.policy import LeasePolicy
from leases.postgres_ledger import PostgresLedger
from tests.databases import NewDatabase
from tests.fakes import MemoryStore
from tests.leasing import CALLER
from tests.property.test_lease_laws import commands

# One script for each of some leases; the leases are worked on side by side.
scripts = st.lists(st.lists(commands, min_size=1, max_size=8), min_size=1, max_size=4)


@dataclass(slots=True)
class Machinery:
    """A log that lives as long as an example, on a database that lives as long as the test."""

    database: Database
    log: EventLog
    lookups: Lookups
    lessor: Lessor

    @classmethod
    def on(cls, database: Database) -> Machinery:
        ledger, store = PostgresLedger(database), MemoryStore()
        log, lookups = EventLog(ledger, SystemClock()), Lookups(ledger)
        lessor = Lessor(
            ledger, log, LeasePolicy(), lookups=lookups, store=store, log_id="l", replica="test"
        )
        return cls(database, log, lookups, lessor)

    async def carry_out(self, mpack_id: str, script: list[Command]) -> None:
        for command in script:
            try:
                await self.lessor.carry_out(mpack_id, unique(command, mpack_id), caller=CALLER)
            except Failure:
                continue

    async def check(self, mpack_id: str) -> None:
        events = await self.log.read_stream(lease_stream(mpack_id))
        assert [event.version for event in events] == list(range(1, len(events) + 1))
        lease: Lease | None = None
        for event in events:
            fact = decode(event.type, event.schema_version, event.data)
            lease = evolve(lease, fact, mpack_id=mpack_id)
        for place in ("mpack_leases", "mpack_leases_fold"):
            rows = await self.database.fetch(
                f"SELECT {LEASE_COLUMNS}, last_position FROM {place} WHERE mpack_id = $1", mpack_id
            )
            assert [lease_of(row) for row in rows] == ([lease] if lease else []), place
            assert [row["last_position"] for row in rows] == [e.position for e in events[-1:]]

    async def example(self, scripts: list[list[Command]]) -> None:
        running = [asyncio.ensure_future(one.run()) for one in (self.log, self.lookups)]
        ids = [new_mpack_id() for _ in scripts]
        await asyncio.gather(*map(self.carry_out, ids, scripts))
        for mpack_id in ids:
            await self.check(mpack_id)
        for task in running:
            task.cancel()
        await asyncio.wait(running)


def unique(command: Command, mpack_id: str) -> Command:
    """The same command with a storage key of this lease's own."""
    if isinstance(command, ReserveLease | AdoptLease):
        return replace(command, storage_key=f"transient/l/{mpack_id}")
    return command


def test_the_databases_fold_is_the_python_one(new_database: NewDatabase) -> None:
    with new_database() as url, asyncio.Runner() as runner:
        database = Database(create_async_engine(url))

        @given(scripts)
        def check(scripts: list[list[Command]]) -> None:
            runner.run(Machinery.on(database).example(scripts))

        check()
        runner.run(database.close())
