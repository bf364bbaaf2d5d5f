"""What goes wrong: one kind after the other, drawn by the seed, with calm in between."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from leases.engine import LeaseEngine
from leases.errors import Conflict, Failure, InvalidRequest, NotFound
from leases.lessor import Caller
from leases.pause import STREAM
from tests.simulation.clocks import EPOCH

if TYPE_CHECKING:
    from tests.simulation.replica import Replica
    from tests.simulation.world import World

_STORM_SECONDS = 40.0
_CALM_SECONDS = 60.0
_PAUSES_SECONDS = (0.3, 2, 6, 15, 40)
# How long after its end a fault may still be felt. Claims in the name of no session end at their
# limit (20 s); a store's circuit probes every two seconds, and retries wait for eight.
_RECOVERY_SECONDS = {
    "kill": 5.0,
    "pause": 5.0,
    "cut from database": 25.0,
    "cut from store": 10.0,
    "database restart": 10.0,
    "flaky database": 10.0,
    "slow database": 10.0,
    "store outage": 10.0,
    "flaky store": 10.0,
    "slow store": 12.0,
    "locked blobs": 12.0,
    "clock jump": 0.0,
    "operator's pause": 3.0,
}
_CLAIM_SECONDS = 25.0
_INTERRUPT = ("kill", "pause")
_HURT = ("cut from database", "database restart", "flaky database", "slow database")
# For the middle of a batch: so often, and so long apart.
_LOOKS_MAX, _LOOK_SECONDS = 3000, 0.001
_HOURS = (-1.0, 1.0, -0.001, 0.001, -24.0)


class Faults:
    """Makes storms, and remembers when anything was wrong."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._chance = world.chance_of("faults")
        self.counts: Counter[str] = Counter()
        self._spans: dict[int, tuple[str, float, float]] = {}
        self._kinds: Mapping[str, Callable[[], Awaitable[None]]] = {
            "kill": self._kill,
            "pause": self._pause,
            "cut from database": self._cut_database,
            "cut from store": self._cut_store,
            "database restart": self._restart_database,
            "flaky database": self._flaky_database,
            "slow database": self._slow_database,
            "store outage": self._store_outage,
            "flaky store": self._flaky_store,
            "slow store": self._slow_store,
            "locked blobs": self._locked_blobs,
            "clock jump": self._jump,
            "operator's pause": self._operator_pauses,
        }

    def between(self, since: datetime, until: datetime, kind: str = "", *, but: str = "") -> bool:
        """Whether anything was wrong at any time between these, or was being got over."""
        first, last = ((moment - EPOCH).total_seconds() for moment in (since, until))
        return any(
            begin <= last and end >= first and kind in ("", own) and own != but
            for own, begin, end in self._spans.values()
        )

    async def run(self, seconds: float) -> None:
        """Calm, storm, calm, until `seconds` have passed; then everything is healed."""
        loop = self._world.loop
        over_at = loop.time() + seconds
        await asyncio.sleep(_CALM_SECONDS / 8)
        while loop.time() + _STORM_SECONDS < over_at:
            # Few kinds at a time: what one of them needs to be got over is then known exactly.
            kinds = self._chance.sample(list(self._kinds), self._chance.choice((1, 1, 2, 3, 13)))
            storm_ends = loop.time() + self._chance.uniform(2, _STORM_SECONDS)
            async with asyncio.TaskGroup() as tasks:
                while loop.time() < storm_ends:
                    tasks.create_task(self._fault(self._chance.choice(kinds)))
                    await asyncio.sleep(self._chance.expovariate(0.3))
            await asyncio.sleep(self._chance.uniform(0.5, 1) * _CALM_SECONDS)

    async def _fault(self, kind: str) -> None:
        world = self._world
        self.counts[kind] += 1
        world.trace("fault", f"{kind} begins")
        number, began = self.counts.total(), world.loop.time()
        recovery_seconds = _RECOVERY_SECONDS[kind]
        self._spans[number] = (kind, began, float("inf"))
        await self._kinds[kind]()
        if kind in _INTERRUPT and self._database_was_hurt(began):
            recovery_seconds = _CLAIM_SECONDS
        over = world.loop.time() + recovery_seconds
        self._spans[number] = (kind, began, over)
        if over == began:
            del self._spans[number]
        world.trace("fault", f"{kind} ends")

    def _database_was_hurt(self, since: float) -> bool:
        """Whether claims may have been made in the name of no session."""
        first = since - 10
        return any(kind in _HURT and end >= first for kind, _begin, end in self._spans.values())

    async def _wait(self, least: float, most: float) -> None:
        await asyncio.sleep(self._chance.uniform(least, most))

    def _anybody(self) -> Replica | None:
        running = [one for one in self._world.machines.values() if one is not None]
        return self._chance.choice(running) if running else None

    # Processes. ----------------------------------------------------------------------------------

    async def _kill(self) -> None:
        replica = self._anybody()
        if replica is None:
            return
        await self._in_the_middle(replica)
        if self._world.machines[replica.name] is not replica:
            return
        self._world.trace(replica.name, "is killed")
        replica.kill()
        self._world.machines[replica.name] = None
        await self._wait(0.3, 12)
        self._world.start(replica.name, start=replica.start + 1)

    async def _in_the_middle(self, replica: Replica) -> None:
        """Half of the time wait until it has claimed something, and a moment longer."""
        if self._chance.random() < 0.5:
            return
        for _ in range(_LOOKS_MAX):
            if replica.workload is not None and replica.workload.engine.reaper._busy:
                break
            await asyncio.sleep(_LOOK_SECONDS)
        await self._wait(0, 0.005)

    async def _pause(self) -> None:
        replica = self._anybody()
        if replica is None:
            return
        await self._in_the_middle(replica)
        if self._world.machines[replica.name] is not replica or not replica.process.runs:
            return
        self._world.trace(replica.name, "is stopped")
        replica.process.runs = False
        await asyncio.sleep(self._chance.choice(_PAUSES_SECONDS) * self._chance.uniform(0.5, 1))
        if self._world.machines[replica.name] is replica:  # Else it was killed meanwhile.
            replica.process.runs = True
            self._world.trace(replica.name, "goes on")

    async def _jump(self) -> None:
        replica = self._anybody()
        if replica is not None:
            shift = timedelta(hours=self._chance.choice(_HOURS))
            replica.clock.shift += shift
            self._world.trace(replica.name, f"its wall clock jumps by {shift.total_seconds()} s")

    # The database. -------------------------------------------------------------------------------

    async def _cut_database(self) -> None:
        replica = self._anybody()
        weather = self._world.database
        if replica is None or replica.name in weather.cut:
            return
        weather.cut.add(replica.name)
        sessions = list(replica.wire.sessions)
        await self._wait(0.2, 10)
        if self._chance.random() < 0.5:  # The server gave them up; the process hears it later.
            for session in sessions:
                session.freed()
                session.lost = True
        await self._wait(0.2, 10)
        weather.cut.discard(replica.name)

    async def _restart_database(self) -> None:
        weather = self._world.database
        if weather.down:
            return
        weather.down = True
        for replica in filter(None, self._world.machines.values()):
            for session in replica.wire.sessions:
                session.freed()
                if session.is_open:
                    self._world.loop.call_soon(session.noticed, context=replica.process.context)
        await self._wait(0.2, 8)
        weather.down = False

    async def _flaky_database(self) -> None:
        weather = self._world.database
        weather.flaky_ratio = self._chance.uniform(0.02, 0.5)
        await self._wait(1, 15)
        weather.flaky_ratio = 0.0

    async def _slow_database(self) -> None:
        weather = self._world.database
        weather.slow_seconds = self._chance.uniform(0.05, 1.5)
        await self._wait(1, 15)
        weather.slow_seconds = 0.0

    # The store. ----------------------------------------------------------------------------------

    async def _store_outage(self) -> None:
        weather = self._world.store
        if weather.down:
            return
        weather.down = True
        await self._wait(0.5, 25)
        weather.down = False

    async def _cut_store(self) -> None:
        replica = self._anybody()
        if replica is None or replica.name in self._world.store.cut:
            return
        self._world.store.cut.add(replica.name)
        await self._wait(0.5, 20)
        self._world.store.cut.discard(replica.name)

    async def _flaky_store(self) -> None:
        weather = self._world.store
        weather.flaky_ratio = self._chance.uniform(0.02, 0.6)
        await self._wait(1, 20)
        weather.flaky_ratio = 0.0

    async def _slow_store(self) -> None:
        weather = self._world.store
        weather.slow_seconds = self._chance.uniform(0.1, 4)
        await self._wait(1, 15)
        weather.slow_seconds = 0.0

    async def _locked_blobs(self) -> None:
        blobs = self._world.blobs
        keys = [key for key in blobs.sizes if self._chance.random() < 0.3]
        blobs.locked.update(keys)
        self._world.oracle.ever_locked.update(keys)
        await self._wait(1, 30)
        if keys and self._chance.random() < 0.3:
            await self._operate(lambda engine: _forget(engine, keys))
        blobs.locked.difference_update(keys)

    # The operator. -------------------------------------------------------------------------------

    async def _operate(self, work: Callable[[LeaseEngine], Awaitable[None]]) -> None:
        """Have a replica do what a command would, if it can; a failure is the operator's."""
        replica = self._anybody()
        if replica is None or replica.workload is None or not replica.process.runs:
            return
        engine = replica.workload.engine

        async def done() -> None:
            with suppress(Failure):
                await work(engine)

        task = self._world.loop.start(replica.process, done())
        await asyncio.wait([task], timeout=5)

    async def _operator_pauses(self) -> None:
        caller = Caller(actor="command:test")
        paused, resumed = "reaping.paused", "reaping.resumed"
        if self._newest_of_reaping() == paused:
            return

        async def pause(engine: LeaseEngine) -> None:
            await engine.owner.pauses.pause(reason="test", caller=caller)

        async def resume(engine: LeaseEngine) -> None:
            await engine.owner.pauses.resume(caller=caller)

        await self._operate(pause)
        await self._wait(1, 30)
        while self._newest_of_reaping() not in (None, resumed):
            await self._operate(resume)
            await self._wait(0.5, 1)

    def _newest_of_reaping(self) -> str | None:
        kind: str | None = self._world.records.newest(STREAM)["type"]
        return kind


async def _forget(engine: LeaseEngine, keys: Sequence[str]) -> None:
    for key in keys:
        with suppress(Conflict, NotFound, InvalidRequest):
            await engine.lessor.forget(
                key.rpartition("/")[2], reason="test", caller=Caller(actor="command:test")
            )
