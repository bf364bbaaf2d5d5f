"""The parts of the service, put together from the settings; the only place that names adapters.

`Service` is entered by the HTTP app's lifespan, and by commands that need the same machinery
without serving (`watch=False`: no alarm, no sweeps, nothing runs by itself).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import datetime
from typing import TYPE_CHECKING, Self

from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from starlette.datastructures import Secret

from gateway.auth import Tokens
from gateway.event_feed import EventFeed
from gateway.lease_listing import LeaseListing
from gateway.metrics import Metrics
from gateway.metrics_state import StateCollector, StatsCache
from gateway.packs.fetch import PackService
from gateway.packs.names import Names
from gateway.packs.push import PushService
from gateway.packs.repos import Repos
from gateway.packs.segments import SegmentWriter
from gateway.packs.uploads import Uploads
from gateway.settings import Settings, database_dsn
from gateway.storage.availability import Availability
from gateway.storage.local import LocalStore
from gateway.storage.timed import TimedStore
from gateway.storage.watched import watched
from leases.clock import SystemClock
from leases.database import Database, translated
from leases.engine import LeaseEngine
from leases.errors import Failure, Unavailable
from leases.steps import Step, Steps, no_steps
from schema import revision

if TYPE_CHECKING:
    from gateway.storage.s3 import S3Store

_POOL_WAIT_SECONDS = 10.0
_CONNECT_SECONDS = 5.0


class NotMigrated(Unavailable):
    """The database is not at the schema of this release; run `mpack-gateway db upgrade`."""

    code = "not_migrated"


class Service:
    """Database, store, lease machinery and what works on them. An async context manager."""

    def __init__(self, settings: Settings, *, watch: bool = True) -> None:
        self.settings = settings
        self.failure: Failure | None = None  # What kept it from serving, or ended that.
        self.stopping = False  # Asked to end: not ready any more, but still serving.
        self.clock = SystemClock()
        self.metrics = Metrics(self.clock)
        self.database = Database(
            make_engine(settings.database_url, settings), observer=self.metrics
        )
        # For the small reads that every request begins with.
        self.reads = self.database.held()
        # The engine is made from the store, so its clock is asked for when it is needed.
        self.store = make_store(settings, clock=lambda: self.engine.database_clock.now())  # noqa: PLW0108
        timed = TimedStore(self.store, self.metrics, monotonic=self.clock.monotonic)
        steps = steps_of(settings.crash_at)
        direct_url = settings.database_direct_url
        self.engine = LeaseEngine(
            self.database,
            timed,
            settings.lease,
            clock=self.clock,
            steps=steps,
            watch=watch,
            direct=None if direct_url is None else Database(make_engine(direct_url, settings)),
            observer=self.metrics,
            upload_bytes_max=settings.wire.upload_bytes_max,
        )
        self.availability = Availability(self.engine, observer=self.metrics)
        served = watched(timed, self.availability)
        self.tokens = Tokens(self.database, reads=self.reads)
        self.repos = Repos(self.database, self.engine.log, reads=self.reads)
        self.listing = LeaseListing(self.database)
        self.segments = SegmentWriter(self.database, served, steps, admission=self.availability)
        self.uploads = Uploads(
            served,
            settings.lease,
            upload_bytes_max=settings.wire.upload_bytes_max,
            admission=self.availability,
        )
        self.pushes = PushService(
            self.database,
            self.engine.log,
            self.segments,
            uploads=self.uploads,
            limits=settings.wire,
            steps=steps,
        )
        self.names = Names(self.database, self.engine.log)
        self.packs = PackService(
            self.engine,
            settings.pack,
            availability=self.availability,
            reads=self.reads,
            steps=steps,
            observer=self.metrics,
        )
        self.stats_cache = StatsCache(self.database, self.clock)
        self.feed = EventFeed(self.database, self.engine, streams_max=settings.event_streams_max)
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as opening:
            opening.push_async_callback(self.database.close)
            opening.push_async_callback(self.reads.close)
            await check_migrated(self.database)
            await opening.enter_async_context(self.store)
            await opening.enter_async_context(self.engine)
            await opening.enter_async_context(self.packs)
            await opening.enter_async_context(self.stats_cache)
            await opening.enter_async_context(self.feed)
            # Only now is there anything to tell.
            circuits = {"deleting": self.engine.reaper.circuit, **self.availability.circuits}
            state = StateCollector(self.engine, self.stats_cache, circuits)
            self.metrics.registry.register(state)
            opening.callback(self.metrics.registry.unregister, state)
            self._open = opening.pop_all()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._open.aclose()


def make_store(settings: Settings, *, clock: Callable[[], datetime]) -> LocalStore | S3Store:
    """The store that the settings name; it dates signed URLs by `clock`, the database's."""
    if settings.s3.s3_bucket is None:
        return LocalStore(settings.data_dir, public_url=settings.base_url, clock=clock)
    from gateway.storage.s3 import S3Store  # The SDK takes most of a second to import.

    return S3Store(settings.s3, clock=clock)


async def revision_of(database: Database) -> str | None:
    """The schema's revision; None before the first migration. Errors: DatabaseUnavailable."""
    with translated():
        return await revision.current(database.engine)


async def check_migrated(database: Database) -> None:
    """Refuse to work on a schema that this release does not know.

    Errors: NotMigrated, DatabaseUnavailable.
    """
    found = await revision_of(database)
    if found != revision.HEAD:
        raise NotMigrated(found=found or "nothing", expected=revision.HEAD)


def make_engine(url: Secret, settings: Settings) -> AsyncEngine:
    """An engine on one of the configured databases; it connects when it is first used."""
    return create_async_engine(
        database_dsn(url),
        pool_size=settings.database_pool_size,
        max_overflow=0,
        pool_timeout=_POOL_WAIT_SECONDS,
        pool_pre_ping=False,  # A statement that meets a dead connection says so soon enough.
        connect_args={
            "timeout": _CONNECT_SECONDS,
            "server_settings": {"application_name": "mpack-gateway"},
        },
    )


def steps_of(crash_at: Step | None) -> Steps:
    """What happens at the named steps: nothing, or for crash tests a kill -9 at one of them."""
    if crash_at is None:
        return no_steps

    def crash(step: Step) -> None:
        if step is crash_at:
            os.kill(os.getpid(), signal.SIGKILL)

    return crash
