"""One replica: a process with an engine, callers, clocks, and ways to database and store."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

from leases.chance import chance_from
from leases.engine import LeaseEngine
from leases.errors import DatabaseUnavailable
from tests.simulation.clocks import SimulatedClock, SimulatedTimer
from tests.simulation.ledger import SimulatedLedger
from tests.simulation.loop import Process
from tests.simulation.network import DatabaseWire
from tests.simulation.store import SimulatedStore
from tests.simulation.workload import Workload

if TYPE_CHECKING:
    from tests.simulation.world import World

# What a supervisor waits before it starts a process again that could not start.
_RESTART_SECONDS = 0.5


def _innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class Replica:
    """A start of a process on the machine `name`; killed, the machine gets another one."""

    def __init__(self, world: World, name: str, *, start: int, shift: timedelta) -> None:
        self.name = name
        self.start = start
        self.world = world
        self.process = Process(name)
        self.clock = SimulatedClock(world.loop, shift)
        self.workload: Workload | None = None
        chance = world.chance_of(f"{name}.{start}")
        self._ids = random.Random(chance.getrandbits(64))
        self._chance = chance
        self.wire = DatabaseWire(
            name, loop=world.loop, chance=chance, weather=world.database, trace=world.trace
        )
        self.store = SimulatedStore(
            name,
            world.blobs,
            loop=world.loop,
            chance=chance,
            weather=world.store,
            trace=world.trace,
            clock=self.clock,
        )
        self.ended = asyncio.Event()
        world.loop.processes.append(self.process)
        self.task = world.loop.start(self.process, self._live())
        self.task.add_done_callback(self._over, context=world.loop.world.context)

    async def _live(self) -> None:
        ledger = SimulatedLedger(self.world.records, self.wire)
        with chance_from(self._ids):
            while not self.ended.is_set():
                with suppress(DatabaseUnavailable):
                    await self._serve(ledger)
                await self.clock.sleep(_RESTART_SECONDS)

    async def _serve(self, ledger: SimulatedLedger) -> None:
        world = self.world
        async with LeaseEngine(
            ledger,
            self.store,
            world.policy,
            clock=self.clock,
            timer=SimulatedTimer(self.clock),
        ) as engine:
            world.trace(self.name, "serves")
            self.workload = Workload(
                engine, self.store, self._chance, world.leases_per_second / len(world.machines)
            )
            self.workload.is_over = world.is_ending
            await self.workload.run()
            await self.ended.wait()

    def _over(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.world.trace(self.name, f"gave up: {error!r}")
            self.world.oracle.complain(f"a process gave up: {_innermost(error)!r}", self.name)

    # What is done to it. -------------------------------------------------------------------------

    def kill(self) -> None:
        """kill -9: nothing of it runs any more; the server notices that its sockets are gone."""
        self.process.runs = False
        self.world.loop.processes.remove(self.process)
        for session in self.wire.sessions:
            self.wire.ended(session)

    def finish(self) -> None:
        """No more callers; the rest goes on."""
        if self.workload is not None:
            self.workload.is_over = True
