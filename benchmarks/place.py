"""Where benchmarks run: a folder on disk, a PostgreSQL of our own, fresh databases, processes."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

import asyncpg
import uvloop
from sqlalchemy.ext.asyncio import create_async_engine
from starlette.datastructures import Secret

from gateway import logs
from gateway.embedded_postgres import EmbeddedPostgres
from gateway.packs.policy import PackPolicy
from gateway.service import Service
from gateway.settings import Settings
from gateway.storage.s3_settings import S3Settings
from leases.lessor import Caller
from schema import migrate

CALLER = Caller(actor="benchmark")
_TEMPLATE = "migrated"
T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """One database and its folder of blobs, or its bucket; goes to other processes as it is."""

    url: str
    folder: Path
    server_pid: int
    s3: S3Settings = field(default_factory=S3Settings)

    @property
    def driver_url(self) -> str:
        """The database's address as asyncpg itself reads it."""
        return self.url.replace("postgresql+asyncpg://", "postgresql://", 1)


class Place:
    """A folder, a server with its default settings, and as many homes as are asked for.

    With `quick` the benchmarks do little and share one process: to see that they run. `repository`
    is the Git repository to clone instead of a made one.
    """

    def __init__(
        self, parent: Path | None = None, *, quick: bool = False, repository: Path | None = None
    ) -> None:
        self.quick = quick
        self.repository = repository
        # Not the default: /tmp is memory on many machines.
        usual = Path("/var/tmp")
        parent = parent or (usual if os.access(usual, os.W_OK) else None)
        self.folder = Path(tempfile.mkdtemp(prefix="mpack-bench-", dir=parent))
        self.folder.chmod(0o711)  # Started by root, the server runs as another account.
        self._server = EmbeddedPostgres(self.folder / "postgres")
        self._numbers = count(1)
        self._kept: dict[str, Home] = {}
        self._migrated = False
        self._worker: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end_worker()
        self._server.remove()
        shutil.rmtree(self.folder, ignore_errors=True)

    async def home(self) -> Home:
        """A new, migrated database and an empty folder."""
        if not self._migrated:
            await self._execute(f"CREATE DATABASE {_TEMPLATE}")
            await _migrate(self._home(_TEMPLATE).url)
            self._migrated = True
        name = f"bench_{next(self._numbers)}"
        await self._execute(f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE}")
        return self._home(name)

    async def kept(self, name: str, prepare: Callable[[Home], Coroutine[Any, Any, object]]) -> Home:
        """A home that is prepared once and then kept for every run."""
        if name not in self._kept:
            home = await self.home()
            await prepare(home)
            self._kept[name] = home
        return self._kept[name]

    async def drop(self, home: Home) -> None:
        """Take a home's space back."""
        await self._execute(f"DROP DATABASE {home.url.partition('?')[0].rpartition('/')[2]}")
        shutil.rmtree(home.folder, ignore_errors=True)

    async def postgres_version(self) -> str:
        """The server's version."""
        connection = await asyncpg.connect(self._home().driver_url)
        try:
            return str(await connection.fetchval("SHOW server_version"))
        finally:
            await connection.close()

    async def apart(
        self, work: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run in a process of its own, with production's log lines written (to nowhere)."""
        if self._worker is None:
            self._worker = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        try:
            waiting = self._worker.submit(_in_worker, partial(work, *args, **kwargs))
            return await asyncio.wrap_future(waiting)
        finally:
            if not self.quick:
                self._end_worker()

    async def replicas(
        self,
        count: int,
        work: Callable[P, Coroutine[Any, Any, T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> list[T]:
        """The same in so many processes at once; what each of them answers."""
        with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as workers:
            one = partial(work, *args, **kwargs)
            waiting = [workers.submit(_in_worker, one) for _ in range(count)]
            return await asyncio.gather(*(asyncio.wrap_future(future) for future in waiting))

    def _end_worker(self) -> None:
        if self._worker is not None:
            self._worker.shutdown()
            self._worker = None

    def _home(self, name: str = "postgres") -> Home:
        return Home(
            url=self._server.url(name), folder=self.folder / name, server_pid=self._server.pid
        )

    async def _execute(self, sql: str) -> None:
        connection = await asyncpg.connect(self._home().driver_url)
        try:
            await connection.execute(sql)
        finally:
            await connection.close()


async def _migrate(url: str) -> None:
    engine = create_async_engine(url)
    try:
        await migrate.upgrade(engine)
    finally:
        await engine.dispose()


@asynccontextmanager
async def serving(
    home: Home, *, watch: bool = True, watched: Callable[[Service], None] | None = None
) -> AsyncIterator[Service]:
    """The service as production puts it together; `watched` may look over its store's shoulder."""
    home.folder.mkdir(exist_ok=True)
    settings = Settings(
        database_url=Secret(home.url),
        data_dir=home.folder / "blobs",
        s3=home.s3,
        pack=PackPolicy(spool_dir=home.folder),
    )
    service = Service(settings, watch=watch)
    if watched:
        watched(service)
    async with service:
        if watch:
            await _may_reap(service)
        yield service


async def forget_packs(home: Home) -> None:
    """The next fetch of anything builds: losing this table costs builds, never correctness."""
    connection = await asyncpg.connect(home.driver_url)
    try:
        await connection.execute("DELETE FROM pack_slots")
    finally:
        await connection.close()


async def _may_reap(service: Service) -> None:
    while not service.engine.owner.may_reap():  # noqa: ASYNC110  the owner has no event for it
        await asyncio.sleep(0.01)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end on uvloop, as production does."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def _in_worker(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    with Path(os.devnull).open("w") as nowhere:
        logs.configure(log_format="json", level="info", stream=nowhere)
        return run(work())
