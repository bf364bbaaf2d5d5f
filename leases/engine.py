"""The lease machinery as one thing to switch on: log, lessor, reaper, alarm, sweeps, reconcile.

    async with LeaseEngine(database, store, policy) as engine:
        lease = await engine.lessor.reserve(…)

Leaving the context claims nothing more, waits for what is being deleted, and ends every task.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

import structlog

from leases.alarm import Alarm
from leases.audit import Auditor
from leases.clock import SystemClock
from leases.database import Database
from leases.database_clock import DatabaseClock
from leases.errors import Failure
from leases.instance import Instance
from leases.ledger import Ledger, Row
from leases.lessor import Lessor
from leases.log import EventLog
from leases.lookups import Lookups
from leases.model import Lease, Trigger
from leases.observe import NOBODY, Observer
from leases.owner import Owner, Ownership
from leases.policy import LeasePolicy
from leases.ports import BlobStore, Clock
from leases.postgres_ledger import PostgresLedger
from leases.quotas import Quotas
from leases.reaper import Reaper
from leases.reconcile import Reconciler
from leases.settlement import SweepResult
from leases.steps import Steps, no_steps
from leases.timer import Timer

# The mark is read again this often until the store has answered once.
_OWNER_RETRY_SECONDS = 1.0
# How soon a replica obeys a pause: with a batch under way, within a second of the command.
_PAUSE_LOOK_SECONDS = 0.5

_log = structlog.get_logger(__name__)


class LeaseEngine:
    """Owns every task of the lease machinery of one process.

    With `watch=False` nothing runs by itself (no alarm, no sweeps): for commands. `direct` leads
    past a transaction pooler, where session locks and notifications would be lost.
    `upload_bytes_max` is what an upload counts as while its size is not known.
    """

    def __init__(
        self,
        database: Database | Ledger,
        store: BlobStore,
        policy: LeasePolicy,
        *,
        clock: Clock | None = None,
        steps: Steps = no_steps,
        watch: bool = True,
        direct: Database | Ledger | None = None,
        observer: Observer = NOBODY,
        timer: Timer | None = None,
        upload_bytes_max: int = 0,
    ) -> None:
        problems = policy.problems()
        if problems:
            raise ValueError("; ".join(problems))
        self._database = database if isinstance(database, Database) else None
        ledger = _ledger_on(database)
        self.store = store
        self.policy = policy
        self.clock: Clock = clock or SystemClock()
        self.database_clock = DatabaseClock(self.clock)
        # Requests may take every connection of theirs; what must be in time has its own.
        self._ledger = ledger
        self._machinery = ledger.another()
        self.log = EventLog(self._machinery, self.clock, observer=observer)
        self._lookups = Lookups(ledger)
        self.instance = Instance(_ledger_on(direct or database), self.clock)
        self.auditor = Auditor(self._database, self.log)
        self.quotas = Quotas(
            self._database, policy, self.clock, upload_bytes_max=upload_bytes_max, observer=observer
        )
        self._steps = steps
        self._observer = observer
        self._watch = watch
        self._timer = timer
        self._tasks: asyncio.TaskGroup | None = None
        self._running: list[asyncio.Task[None]] = []
        self._workers: list[asyncio.Task[None]] = []
        self._swept = asyncio.Event()
        self._doubted = asyncio.Event()

    @property
    def database(self) -> Database:
        """The PostgreSQL that it was given."""
        assert self._database is not None, "this engine keeps its leases elsewhere"
        return self._database

    async def __aenter__(self) -> Self:
        try:
            await self._open()
        except BaseException:  # Given up while it waited for the database, for one.
            await self._end()
            raise
        return self

    async def _open(self) -> None:
        head = await self._first_look()
        self.log_id = str(head["log_id"])
        replica = self.instance.instance_id
        self.lessor = Lessor(
            self._ledger,
            self.log,
            self.policy,
            lookups=self._lookups,
            store=self.store,
            log_id=self.log_id,
            replica=replica,
        )
        self.owner = Owner(log=self.log, store=self.store, log_id=self.log_id)
        self.reaper = Reaper(
            ledger=self._machinery,
            log=self.log,
            store=self.store,
            policy=self.policy,
            clock=self.clock,
            database_clock=self.database_clock,
            instance=self.instance,
            log_id=self.log_id,
            may_reap=self.owner.may_reap,
            steps=self._steps,
            observer=self._observer,
        )
        self.alarm = Alarm(
            ledger=self._machinery,
            policy=self.policy,
            clock=self.clock,
            wake=self.reaper.wake,
            database_clock=self.database_clock,
            timer=self._timer,
        )
        self.reaper.found_nothing = self.alarm.look_soon
        self.reconciler = Reconciler(
            ledger=self._machinery,
            log=self.log,
            store=self.store,
            policy=self.policy,
            log_id=self.log_id,
            replica=replica,
        )
        self._tasks = await asyncio.TaskGroup().__aenter__()
        await self._start(self._tasks)

    async def _first_look(self) -> Row:
        asked_at = self.clock.monotonic()
        head = await self.log.head()
        self.database_clock.observe(head["now"], asked_at=asked_at)
        return head

    async def _start(self, tasks: asyncio.TaskGroup) -> None:
        ready = asyncio.Event()
        jobs: list[Awaitable[None]] = [self.log.run(), self._lookups.run()]
        jobs.append(self.instance.run(ready=ready))
        if self._watch:
            jobs += [self.alarm.run(), self._start_up(), self._sweep_forever()]
            jobs += [self._reconcile_forever(), self._obey_forever(), self._confirm_forever()]
            self.instance.interrupted = self._doubt
            workers = (self._work() for _ in range(self.policy.reap_workers))
            self._workers = [tasks.create_task(worker) for worker in workers]
        self._running += self._workers
        for job in jobs:
            self._running.append(tasks.create_task(job))  # type: ignore[arg-type]
        await ready.wait()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self.reaper.stop()
        finally:  # Whoever is impatient with the deletions leaves no task behind either.
            await self._end()

    async def _end(self) -> None:
        for task in self._running:
            task.cancel()
        try:
            if self._tasks is not None:
                await self._tasks.__aexit__(None, None, None)
        finally:
            await self._machinery.close()

    @property
    def workers_running(self) -> int:
        """How many reap workers live; none outside of `watch`."""
        return sum(not worker.done() for worker in self._workers)

    def granted(self, lease: Lease) -> None:
        """Tell the alarm of a lease that this process has just granted, moved or revoked."""
        self.alarm.arm(lease.delete_at)

    # What runs by itself. ------------------------------------------------------------------------

    async def _work(self) -> None:
        """One reap worker; the first sweep is before it, so that what it finds is told as such."""
        await self._swept.wait()
        await self.reaper.run_worker()

    async def _start_up(self) -> None:
        """Confirm the mark, then reap what fell due while nobody was there."""
        while not await self._surely("owner_check", self.owner.check):
            await self.clock.sleep(_OWNER_RETRY_SECONDS)
        result = SweepResult()

        async def sweep() -> None:
            result.add(await self.reaper.sweep(Trigger.START_UP))

        await self._surely("start_up_sweep", sweep)
        self._swept.set()
        _log.info("start_up_sweep", **_told(result))

    async def _sweep_forever(self) -> None:
        """The net under the alarm; on the monotonic clock, apart from APScheduler."""

        async def sweep() -> None:
            if not self.owner.may_reap():
                await self.owner.check()
            result = await self.reaper.sweep(Trigger.PERIODIC)
            if result.claimed:
                _log.info("periodic_sweep", **_told(result))

        while True:
            await self.clock.sleep(self.policy.sweep_interval_seconds)
            await self._surely("periodic_sweep", sweep)

    async def _reconcile_forever(self) -> None:
        async def reconcile() -> None:
            await self.owner.check()
            if self.owner.may_reap():
                result = await self.reconciler.run_once()
                counts = {
                    "listed": result.listed,
                    "adopted": result.adopted,
                    "residue_deleted": result.residue_deleted,
                    "findings": result.findings_count,
                }
                self._observer.reconciled(**counts)
                _log.info("reconciled", **counts)

        while True:
            await self.clock.sleep(self.policy.reconcile_interval_seconds)
            await self._surely("reconcile", reconcile)
            await self._surely("log_check", self._check_log)

    async def _check_log(self) -> None:
        verdict = await self.auditor.verify_tail()
        self._observer.verified(len(verdict.problems))
        if not verdict.ok:
            _log.error("log_contradicts", problems=len(verdict.problems), first=verdict.problems[0])

    async def _obey_forever(self) -> None:
        while True:
            await self.clock.sleep(_PAUSE_LOOK_SECONDS)
            if self.owner.state is not Ownership.UNKNOWN:  # Somebody is at it.
                await self._surely("pause_look", self.owner.obey)

    def _doubt(self) -> None:
        self.owner.doubt()
        self._doubted.set()

    async def _confirm_forever(self) -> None:
        """Compare the mark anew whenever the connection to the database was lost, and when it
        is there again: a standby that took the place of the old server may lack its newest events.
        """
        while True:
            await self._doubted.wait()
            self._doubted.clear()
            while not await self._surely("owner_check", self.owner.check):
                await self.clock.sleep(_PAUSE_LOOK_SECONDS)
            self.reaper.wake()  # What fell due meanwhile found nobody ready.

    async def _surely(self, name: str, work: Callable[[], Awaitable[object]]) -> bool:
        """Run `work`; a failure is told and survived, because the next turn tries again."""
        try:
            await work()
        except Failure as failure:
            self._observer.task_done(name, ok=False)
            _log.warning("task_failed", task=name, error=failure.code, detail=str(failure))
            return False
        except Exception as error:  # noqa: BLE001  a host's store may raise anything
            self._observer.task_done(name, ok=False)
            # Where, but not what it says: a store's words may repeat a signed URL.
            where = "".join(traceback.format_tb(error.__traceback__))
            _log.error("task_failed", task=name, error=type(error).__name__, where=where)
            return False
        self._observer.task_done(name, ok=True)
        return True


def _ledger_on(database: Database | Ledger) -> Ledger:
    return PostgresLedger(database) if isinstance(database, Database) else database


def _told(result: SweepResult) -> dict[str, int]:
    return {
        "reclaimed": result.reclaimed,
        "failed": result.failed,
        "handed_back": result.handed_back,
        "overdue_ms_max": result.lateness_ms_max,
    }
