"""A world of a seed: replicas, one database, one store, faults and an oracle."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from uuid import UUID

import structlog

from leases.clock import SystemClock
from leases.policy import LeasePolicy
from tests.simulation.clocks import EPOCH
from tests.simulation.faults import Faults
from tests.simulation.loop import SimulatedLoop
from tests.simulation.network import Weather
from tests.simulation.oracle import Oracle, Violation
from tests.simulation.records import Records
from tests.simulation.replica import Replica
from tests.simulation.store import Blobs
from tests.simulation.trace import Trace

_REST_SECONDS = 150.0
_REPLICAS = (1, 2, 3, 3)
_SKEWS_SECONDS = (0, 0, 0.3, -0.3, 120, -1200, 3600)
# Short lives and limits, so that minutes hold as many of them as a day does elsewhere.
_POLICY = LeasePolicy(
    ttl_default_seconds=10,
    lease_life_max_seconds=30,
    share_guard_seconds=0,
    share_guard_ratio=0,
    upload_limit_seconds=12,
    upload_margin_seconds=2,
    claim_limit_seconds=20,
    delete_timeout_seconds=4,
    sweep_interval_seconds=10,
    reconcile_interval_seconds=15,
    retry_cap_seconds=8,
    stuck_after_attempts=4,
    circuit_pause_seconds=0.5,
    circuit_pause_seconds_max=2,
    circuit_probe_seconds=2,
)


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What a run was, and what it broke; `story` is short enough to read."""

    seed: int
    simulated_seconds: float
    real_seconds: float
    trace_hash: str
    steps: int
    leases: int
    ends: int
    lateness_ms_max_calm: int
    faults: dict[str, int]
    violations: list[str] = field(default_factory=list)
    story: list[str] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """How many times faster than real time."""
        return self.simulated_seconds / self.real_seconds


class World:
    """Everything of one run; `run` makes it."""

    def __init__(self, seed: int, *, leases_per_second: float = 1.5) -> None:
        self.seed = seed
        self.leases_per_second = leases_per_second
        self.loop = SimulatedLoop(self.chance_of("order"))
        self.trace = Trace(self.loop.time)
        self.database = Weather()
        self.store = Weather()
        self.blobs = Blobs()
        self._chance = self.chance_of("world")
        self.policy = _policy(self._chance)
        self.records = Records(
            lambda: EPOCH + timedelta(seconds=self.loop.time()),
            UUID(int=self._chance.getrandbits(128), version=4),
        )
        self.faults = Faults(self)
        self.oracle = Oracle(
            self.records,
            self.blobs,
            self.policy,
            self.faults.between,
        )
        self.records.appended = self.oracle.appended
        self.blobs.before_delete = self.oracle.before_delete
        self.blobs.stored = self.oracle.stored
        self.machines: dict[str, Replica | None] = {}
        self.is_ending = False
        self._started: list[Replica] = []

    def chance_of(self, what: str) -> random.Random:
        """A stream of chance of its own, so that one more draw here moves nothing there."""
        return random.Random(f"{self.seed}/{what}")

    def start(self, name: str, *, start: int = 0) -> None:
        """Start a process on this machine, with a wall clock that may be wrong."""
        shift = timedelta(seconds=self._chance.choice(_SKEWS_SECONDS))
        replica = Replica(self, name, start=start, shift=shift)
        self.machines[name] = replica
        self._started.append(replica)

    async def live(self, seconds: float) -> None:
        """The whole run: faults and calm, then rest, then a look at what is left."""
        count = self._chance.choice(_REPLICAS)
        self.machines = dict.fromkeys(f"r{number}" for number in range(1, count + 1))
        for name in self.machines:
            self.start(name)
        stranger = "transient/somebody/else"
        self.loop.call_later(8, self._leave, stranger, context=self.loop.world.context)
        await self.faults.run(seconds)
        self.is_ending = True
        for replica in self.machines.values():
            assert replica is not None, "whoever is killed is started again"
            replica.finish()
        await asyncio.sleep(_REST_SECONDS)
        self.oracle.at_rest()
        for failure in self.loop.failures:
            self.oracle.complain(failure, "Traceback")

    def _leave(self, key: str) -> None:
        """A blob that is nobody's comes after the store was marked, and must stay."""
        self.oracle.strangers.add(key)
        self.blobs.put(key, b"foreign")

    async def end(self) -> None:
        """Let everybody leave in order, the dead as well: their last words change nothing."""
        for replica in self._started:
            replica.process.runs = True
            if replica.process not in self.loop.processes:
                self.loop.processes.append(replica.process)
            if replica.task.done():
                continue
            for task in [replica.task, *replica.process.pending()]:
                task.cancel()
        pending = [task for one in self._started for task in one.process.pending()]
        await asyncio.gather(*pending, return_exceptions=True)


def _policy(chance: random.Random) -> LeasePolicy:
    return replace(
        _POLICY,
        grace_seconds=chance.choice((0, 0, 0.25, 2)),
        alarm_enabled=True,
        reap_batch=chance.choice((3, 250)),
        reap_workers=chance.choice((1, 4)),
    )


@contextmanager
def _silence() -> Iterator[None]:
    """No log lines: they cost as much as the run."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        yield
    finally:
        structlog.configure(**before)


def run(seed: int, *, seconds: float) -> Outcome:
    """Simulate so many seconds, and the rest after them."""
    clock = SystemClock()
    began = clock.monotonic()
    world = World(seed)
    with _silence():
        try:
            main = world.loop.start(world.loop.world, world.live(seconds))
            world.loop.run_until_complete(main)
        finally:
            simulated, took = world.loop.time(), clock.monotonic() - began
            hash_, violations = world.trace.hash, list(world.oracle.violations)
            world.loop.run_until_complete(world.loop.start(world.loop.world, world.end()))
            world.loop.close()
    return Outcome(
        seed=seed,
        simulated_seconds=simulated,
        real_seconds=took,
        trace_hash=hash_,
        steps=world.loop.steps,
        leases=len(world.records.rows),
        ends=world.oracle.ends,
        lateness_ms_max_calm=world.oracle.lateness_ms_max_calm,
        faults=dict(sorted(world.faults.counts.items())),
        violations=[f"{one.about}: {one.what}" for one in violations],
        story=_story(world, violations),
    )


def _story(world: World, violations: list[Violation]) -> list[str]:
    """What was done to the first lease of which something was broken, and around it."""
    if not violations:
        return []
    return world.trace.about(violations[0].about, "begins", "ends", "is killed", "goes on")
