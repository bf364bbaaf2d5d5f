"""Enumerate the crash points of a scenario, crash there, recover, and look at what is left.

`effects` runs a scenario whole and tells what it did; `crash` runs it again up to one point; then
`recovered` does what a healthy replica does by itself, and everything must hold.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.context import ForkServerContext
from pathlib import Path

from gateway.packs.fetch import PackService
from gateway.packs.transaction import reading
from gateway.service import Service, make_store
from gateway.storage.folder import scratch_prefix
from leases.clock import SystemClock
from leases.database import Database
from leases.engine import LeaseEngine
from leases.owner import OWNER_KEY
from tests.fault.crashing import ORPHANED, POLICY, TTL_SECONDS, World, revoke_adopted, run
from tests.fault.effects import Effect, Point, Side, read_report
from tests.fault.scene import a_pushed_repo
from tests.integration.gateways import settings_for
from tests.invariants import check_invariants, durable_snapshot
from tests.leasing import CALLER, another_database, until
from tests.stores import view_of

_LIFE_SECONDS_MAX = 30.0
# A dead builder's slot would be free after ten seconds by itself, its claims after thirty.
_RECOVERY_SECONDS_MAX = 6.0
_PUBLIC_URL = "http://127.0.0.1:9"  # Nobody fetches: a store without one would not sign.


def _forks() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([run.__module__])
    return context


@dataclass(slots=True, kw_only=True)
class CrashSite:
    """One world, to crash in again and again; it must be at rest after each recovery."""

    world: World
    folder: Path
    database_url: str
    durable: dict[str, str]
    crashes: int = 0

    async def effects(self, scenario: str) -> list[Effect]:
        """What the scenario does when nothing happens to it."""
        code, seen = await self._live(scenario, None)
        assert code == 0, f"{scenario} failed by itself: {code}"
        await self.recover()
        return seen

    async def crash(self, scenario: str, point: Point) -> Effect:
        """Die there; answers at what. The leavings are looked at at once: no blob without a row."""
        code, seen = await self._live(scenario, point)
        assert code == -signal.SIGKILL, f"{scenario} did not get to {point}: {code}, {seen}"
        if scenario not in ORPHANED:
            await self._check(at_rest=False)
        return seen[-1]

    async def crash_if_reached(self, scenario: str, point: Point) -> Effect | None:
        """The same where nobody knows beforehand how far it gets."""
        code, seen = await self._live(scenario, point)
        assert code in (0, -signal.SIGKILL), f"{scenario} failed: {code}, {seen}"
        return None if code == 0 else seen[-1]

    async def _live(self, scenario: str, point: Point | None) -> tuple[int, list[Effect]]:
        self.crashes += 1
        report = self.folder / f"effects-{self.crashes}"
        process = _forks().Process(target=run, args=(self.world, scenario, point, report))
        process.start()
        await asyncio.to_thread(process.join, _LIFE_SECONDS_MAX)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise AssertionError(f"{scenario} neither ended nor died")
        return process.exitcode, read_report(report)

    async def recover(self) -> None:
        """A healthy replica starts, the same work is done again, and all comes to rest."""
        settings = self.world.settings
        async with (
            another_database(self.database_url) as database,
            make_store(settings, clock=lambda: engine.database_clock.now()) as store,  # noqa: PLW0108
            LeaseEngine(database, store, POLICY) as engine,
            PackService(engine, settings.pack) as packs,
        ):
            clock = SystemClock()
            began = clock.monotonic()
            await until(partial(_may_reap, engine))
            answer = await packs.fetch_mpack(
                partial(reading, database),
                self.world.repo_id,
                want=[self.world.want],
                have=[],
                ttl_seconds=TTL_SECONDS,
                caller=CALLER,
            )
            assert answer.mpack_url is not None
            await engine.reconciler.run_once()
            await revoke_adopted(engine)
            await until(partial(_nothing_open, database), _RECOVERY_SECONDS_MAX)
            assert clock.monotonic() - began < _RECOVERY_SECONDS_MAX
            again = await engine.reconciler.run_once()
            assert (again.adopted, again.residue_deleted, again.findings) == (0, 0, [])
        await self._check(at_rest=True)
        assert self._unfinished_uploads() == []

    async def _check(self, *, at_rest: bool) -> None:
        settings = self.world.settings
        async with (
            another_database(self.database_url) as database,
            make_store(settings, clock=SystemClock().now) as store,
        ):
            await check_invariants(
                database, store, policy=POLICY, at_rest=at_rest, durable=self.durable
            )

    def _unfinished_uploads(self) -> list[str]:
        # A torn mark is no lease's: it is some bytes, and goes with what is found long dead.
        marks = (OWNER_KEY, scratch_prefix(OWNER_KEY))
        found = view_of(self.world.settings.data_dir).unfinished()
        return [name for name in found if not name.startswith(marks)]


async def _may_reap(engine: LeaseEngine) -> bool:
    return engine.owner.may_reap()


async def _nothing_open(database: Database) -> bool:
    row = await database.row("SELECT count(*) AS open FROM mpack_leases WHERE state <> 'reclaimed'")
    return bool(row["open"] == 0)


@asynccontextmanager
async def crash_site(database_url: str) -> AsyncIterator[CrashSite]:
    """A repo that was pushed to, on this database and a store of its own."""
    with tempfile.TemporaryDirectory(prefix="mpg-crash-") as place:
        folder = Path(place)
        settings = settings_for(
            database_url, folder / "blobs", public_url=_PUBLIC_URL, lease=POLICY
        )
        async with Service(settings, watch=False) as service:
            await service.engine.owner.check()
            pushed = await a_pushed_repo(service)
            row = await service.database.row("SELECT repo_id FROM repos")
            durable = await durable_snapshot(service.store)
        world = World(settings=settings, repo_id=row["repo_id"], want=pushed.history.head.commit_id)
        yield CrashSite(world=world, folder=folder, database_url=database_url, durable=durable)


def single_points(effects: list[Effect], *, every: bool) -> list[Point]:
    """The points of a scenario. Unless `every` one is wanted, those between two effects count once:
    nothing outside of the process changes between the end of one and the begin of the next.
    """
    return [
        Point(number, side)
        for number, effect in enumerate(effects, start=1)
        for side in effect.sides()
        if every or number == 1 or side is not Side.BEFORE
    ]
