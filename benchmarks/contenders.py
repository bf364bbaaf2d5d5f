"""Who deletes blobs at their time: we, pgqueuer and etcd, each with two workers of its own.

Each is an async context manager, at whose end nothing of it runs any more: `begin` starts its
workers, `schedule` promises so many deletions, all within one second, and `kill` ends one worker
with -9 in the middle of its work.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import shutil
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from datetime import timedelta
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Self

import asyncpg

from benchmarks import etcd_client
from benchmarks.etcd_client import Etcd
from benchmarks.place import Home, Place, serving
from benchmarks.vanishing import write_blobs
from leases.ids import new_mpack_id
from leases.model import storage_key

WORKERS = 2
_START_SECONDS_MAX = 30.0
_END_SECONDS_MAX = 20.0
_GRANTED_PER_SECOND = 1500  # A third of what is possible.
_LEAD_SECONDS = 4.0  # From the promise to the first deadline: everything has settled by then.
# So long that etcd's leases are all granted meanwhile; it allows no less than two seconds.
_TTL_SECONDS, _TTL_SECONDS_QUICK = 12, 3
_PENDING = """
INSERT INTO pgqueuer (priority, status, entrypoint, payload, execute_after)
SELECT 0, 'queued', $1, convert_to('later-' || n, 'UTF8'),
       now() + interval '1 day' + n * interval '0.08 seconds'
FROM generate_series(1, $2::int) AS n"""
_DUE = """
SELECT convert_from(payload, 'UTF8') AS name, extract(epoch FROM execute_after)::float8 AS due
FROM pgqueuer WHERE execute_after < now() + interval '1 hour'"""


class PeerMissing(Exception):
    """What a peer needs is not installed."""


def check_peers() -> None:
    """Errors: PeerMissing, which says how to get it."""
    if find_spec("pgqueuer") is None:
        raise PeerMissing("pgqueuer is missing here; `make .venv/.bench` installs it.")
    if shutil.which("etcd") is None:
        raise PeerMissing("etcd is missing here; `apt-get install etcd-server` installs it.")


class Contender(ABC):
    """One of them, with its workers running inside of the block."""

    folder: Path  # Where its blobs lie.

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []

    async def __aenter__(self) -> Self:
        return self

    @abstractmethod
    async def begin(self) -> None:
        """Start the workers."""

    @abstractmethod
    async def schedule(self, count: int) -> Mapping[str, float]:
        """Write so many blobs; the deadline of each by its name, in epoch seconds."""

    def _run(self, worker: str, *arguments: str) -> None:
        """Start the two workers of a peer."""
        command = [sys.executable, "-m", f"benchmarks.{worker}", *arguments]
        self.processes += [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            for _ in range(WORKERS)
        ]

    async def kill(self) -> None:
        """End one of the two workers in the middle of its work."""
        self.processes[0].kill()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGKILL)
            process.wait(_END_SECONDS_MAX)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


class Ours(Contender):
    """Two replicas on one database and one local store, each with leases of its own to grant."""

    def __init__(self, place: Place, home: Home) -> None:
        super().__init__()
        self._place, self._home = place, home

    async def begin(self) -> None:
        self.folder = self._home.folder / "blobs" / await self._place.apart(_prefix, self._home)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._run("lease_worker", self._home.url, str(self._home.folder))
        for process in self.processes:
            await _said(process, "ready")

    async def schedule(self, count: int) -> Mapping[str, float]:
        names = [new_mpack_id() for _ in range(count)]
        await asyncio.to_thread(write_blobs, self.folder, names)
        first = time.time() + 1 + count / _GRANTED_PER_SECOND
        for at, process in enumerate(self.processes):
            share = names[at::WORKERS]
            step = WORKERS / count
            told = {"names": share, "first": first + at / count, "step": step}
            assert process.stdin is not None
            process.stdin.write(json.dumps(told).encode() + b"\n")
            process.stdin.flush()
        for process in self.processes:
            await _said(process, "granted")
        assert time.time() < first, "granting took too long"
        return {name: first + number / count for number, name in enumerate(names)}


async def _said(process: subprocess.Popen[bytes], word: str) -> None:
    assert process.stdout is not None
    line = await asyncio.to_thread(process.stdout.readline)
    assert line.decode().strip() == word, line


async def _prefix(home: Home) -> str:
    """Where the blobs lie; and the store carries its mark."""
    async with serving(home) as service:
        return storage_key(service.engine.log_id, "x").removesuffix("/x")


class PgQueuer(Contender):
    """Two workers of pgqueuer with a task that deletes a file; `heartbeat_seconds`: see there."""

    def __init__(self, home: Home, *, pending: int, heartbeat_seconds: float) -> None:
        super().__init__()
        self._home, self._pending = home, pending
        self._heartbeat_seconds = heartbeat_seconds
        self.folder = home.folder / "queued"

    async def begin(self) -> None:
        from pgqueuer.db import AsyncpgDriver
        from pgqueuer.queries import Queries

        from benchmarks.pgqueuer_worker import ENTRYPOINT

        self.folder.mkdir(parents=True, exist_ok=True)
        connection = await asyncpg.connect(self._home.driver_url)
        try:
            await Queries(AsyncpgDriver(connection)).install()
            if self._pending:
                await connection.execute(_PENDING, ENTRYPOINT, self._pending)
            await connection.execute("VACUUM ANALYZE")
            await connection.execute("CHECKPOINT")
        finally:
            await connection.close()
        self._run(
            "pgqueuer_worker",
            self._home.driver_url,
            str(self.folder),
            str(self._heartbeat_seconds),
        )

    async def schedule(self, count: int) -> Mapping[str, float]:
        from pgqueuer.db import AsyncpgDriver
        from pgqueuer.queries import Queries

        from benchmarks.pgqueuer_worker import ENTRYPOINT

        names = [f"blob-{number}" for number in range(count)]
        await asyncio.to_thread(write_blobs, self.folder, names)
        connection = await asyncpg.connect(self._home.driver_url)
        try:
            await Queries(AsyncpgDriver(connection)).enqueue(
                [ENTRYPOINT] * count,
                [name.encode() for name in names],
                [0] * count,
                [timedelta(seconds=_LEAD_SECONDS + number / count) for number in range(count)],
            )
            rows = await connection.fetch(_DUE)
        finally:
            await connection.close()
        return {row["name"]: row["due"] for row in rows}


class EtcdLeases(Contender):
    """One etcd with a lease and a key for each blob; two watchers delete the blobs of lost keys."""

    def __init__(self, place: Place, folder: Path, *, pending: int) -> None:
        super().__init__()
        self._place, self._pending = place, pending
        self._ttl_seconds = _TTL_SECONDS_QUICK if place.quick else _TTL_SECONDS
        self._etcd = Etcd(folder / "etcd")
        self.folder = folder / "watched"

    async def begin(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.processes.append(self._etcd.start())
        await self._etcd.answers(seconds_max=_START_SECONDS_MAX)
        await self._place.apart(etcd_client.lease_for_a_day, self._etcd.port, self._pending)
        self._run("etcd_worker", self._etcd.url, str(self.folder))

    async def schedule(self, count: int) -> Mapping[str, float]:
        names = [f"blob-{number}" for number in range(count)]
        await asyncio.to_thread(write_blobs, self.folder, names)
        return await self._place.apart(
            etcd_client.lease_to_one_second,
            self._etcd.port,
            names,
            ttl_seconds=self._ttl_seconds,
        )

    async def kill(self) -> None:
        """The server itself keeps the time here; it is started again at once."""
        self.processes[0].kill()
        self.processes[0].wait(_END_SECONDS_MAX)
        self.processes[0] = self._etcd.start()


class Bare(Contender):
    """The control: two processes that know every deadline, wait, and unlink; every second each."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder / "bare"
        self._told: list[Connection] = []

    async def begin(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        spawn = multiprocessing.get_context("spawn")
        for _ in range(WORKERS):
            here, there = spawn.Pipe()
            spawn.Process(target=_delete_all, args=(self.folder, there), daemon=True).start()
            await asyncio.to_thread(here.recv)
            self._told.append(here)

    async def schedule(self, count: int) -> Mapping[str, float]:
        names = [f"blob-{number}" for number in range(count)]
        await asyncio.to_thread(write_blobs, self.folder, names)
        first = time.time() + _LEAD_SECONDS
        due = {name: first + number / count for number, name in enumerate(names)}
        for at, told in enumerate(self._told):
            told.send(dict(list(due.items())[at::WORKERS]))
        return due


def _delete_all(folder: Path, teller: Connection) -> None:
    teller.send("ready")
    due: dict[str, float] = teller.recv()
    for name, deadline in due.items():
        if (left := deadline - time.time()) > 0:
            time.sleep(left)
        (folder / name).unlink()
