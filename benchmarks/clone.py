"""A history like that of source code, cloned through a URL; beside it Git itself over smart HTTP.

The history (git_history.py, or the repository given with `--repository`) is imported over HTTP into
the command `serve`. A clone of ours asks for the heads and the pack (zstd, snapshots told by their
changes), downloads it into a file and recomputes every id, in a process of its own and, `running`,
in one that has done so before. The control, in turns with it: `git clone --bare` of the same
history from `git http-backend` on the same machine. Both recompute every id, look whether all that
the heads reach is there, keep the pack in a file and check nothing out. Git also writes an index
and syncs both files (two fsyncs); ours has its index in memory.

Then 20 of each at once; 20 at once in the client that runs already, in a thread each; and by such
clients in as many processes as there are cores, as a mirror or a runner has them. The server's
processor time is the gateway's with PostgreSQL's, and Git's own without the HTTP server in front of
it; a client's is that of its process, and Git's of all of its processes.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median

import httpx2

from benchmarks import cloning, git_history
from benchmarks.cloning import clone
from benchmarks.figures import Benchmark, Figure, Run
from benchmarks.place import Place, forget_packs
from benchmarks.served import ServedGateway, admin_token
from benchmarks.usage import children_seconds, process_seconds, server_seconds
from gateway.client import Client
from gateway.git_import import GitHistory

_COMMITS, _COMMITS_MANY, _COMMITS_QUICK = 1_500, 20_000, 30
_AT_ONCE, _AT_ONCE_QUICK = 20, 2
_TURNS = 5
_START_SECONDS_MAX = 30.0
_ADDRESS = "bench/clone"
_NO_BYTECODE = "PYTHONDONTWRITEBYTECODE"


def _push(url: str, token: str, repository: Path) -> None:
    with (
        Client(url, token=token) as client,
        GitHistory.open(repository) as history,
    ):
        client.push(history, branch="main")


@contextmanager
def _git_served(folder: Path) -> Iterator[tuple[str, int]]:
    """The URL of the folder's repositories, and the server's process id."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.git_server", str(folder), str(port)]
    server = subprocess.Popen(command)
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}", server.pid
    finally:
        server.kill()
        server.wait()


@dataclass(slots=True)
class _Scene:
    """Both servers of one history."""

    ours: str
    git: str
    folder: Path
    cpu_ours: Callable[[], float]
    cpu_git: Callable[[], float]
    forget: Callable[[], None]
    _numbers: Iterator[int] = field(default_factory=count)

    def start_ours(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "benchmarks.cloning", self.ours, str(self.place())]
        environ = {name: text for name, text in os.environ.items() if name != _NO_BYTECODE}
        # A package that is installed has been compiled, and so has this one from the second run on.
        environ["PYTHONPYCACHEPREFIX"] = str(self.folder / "bytecode")
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environ)

    def start_git(self) -> subprocess.Popen[bytes]:
        command = ["git", "clone", "--quiet", "--bare", self.git, str(self.place())]
        return subprocess.Popen(command)

    def place(self) -> Path:
        """Where the next clone goes."""
        return self.folder / f"clone-{next(self._numbers)}"


def _timed(*starts: Callable[[], subprocess.Popen[bytes]]) -> float:
    began = time.perf_counter()
    running = [start() for start in starts]
    codes = [process.wait() for process in running]
    assert not any(codes), codes
    return time.perf_counter() - began


def _measure(scene: _Scene, *, turns: int, at_once: int) -> dict[str, float]:
    _timed(scene.start_ours)
    with Client(scene.ours) as client:
        found = _in_turns(scene, client, turns=turns)
        return found | _at_once(scene, client, at_once) if at_once else found


def _in_turns(scene: _Scene, client: Client, *, turns: int) -> dict[str, float]:
    cold, shared, running, git = [], [], [], []
    size = clone(client, scene.place())
    gits = scene.place()
    assert not subprocess.call(["git", "clone", "--quiet", "--bare", scene.git, str(gits)])
    git_size = git_history.pack_bytes(gits)
    for _ in range(turns):
        git.append(_timed(scene.start_git))
        scene.forget()
        cold.append(_timed(scene.start_ours))
        shared.append(_timed(scene.start_ours))
        began = time.perf_counter()
        clone(client, scene.place())
        running.append(time.perf_counter() - began)
    return {
        "pack_bytes": size,
        "git_bytes": git_size,
        "bytes_ratio": size / git_size,
        "git_seconds": median(git),
        "shared_seconds": median(shared),
        "shared_ratio": median(shared) / median(git),
        "cold_seconds": median(cold),
        "cold_ratio": median(cold) / median(git),
        "running_seconds": median(running),
        "running_ratio": median(running) / median(git),
    }


def _at_once(scene: _Scene, client: Client, count: int) -> dict[str, float]:
    server, own = scene.cpu_ours(), children_seconds(os.getpid())
    wall = _timed(*[scene.start_ours] * count)
    server, own = scene.cpu_ours() - server, children_seconds(os.getpid()) - own
    server_git, own_git = scene.cpu_git(), children_seconds(os.getpid())
    wall_git = _timed(*[scene.start_git] * count)
    server_git, own_git = scene.cpu_git() - server_git, children_seconds(os.getpid()) - own_git
    places = [scene.place() for _ in range(count)]
    began = time.perf_counter()
    with ThreadPoolExecutor(count) as threads:
        list(threads.map(partial(clone, client), places))
    wall_running = time.perf_counter() - began
    wall_workers = _by_workers(scene, count)
    return {
        "at_once_seconds": wall,
        "at_once_git_seconds": wall_git,
        "at_once_ratio": wall_git / wall,
        "at_once_running_seconds": wall_running,
        "at_once_running_ratio": wall_git / wall_running,
        "at_once_workers_seconds": wall_workers,
        "at_once_workers_ratio": wall_git / wall_workers,
        "client_cpu_ms": 1000 * own / count,
        "client_cpu_git_ms": 1000 * own_git / count,
        "server_cpu_ms": 1000 * server / count,
        "server_cpu_git_ms": 1000 * server_git / count,
        "server_cpu_ratio": server / server_git if server_git else 0,
    }


def _by_workers(scene: _Scene, count: int) -> float:
    cores = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(
        cores, multiprocessing.get_context("spawn"), cloning.start, (scene.ours,)
    ) as workers:
        list(workers.map(cloning.clone_again, [scene.place() for _ in range(count)]))
        places = [scene.place() for _ in range(count)]
        began = time.perf_counter()
        list(workers.map(cloning.clone_again, places))
        return time.perf_counter() - began


async def _run_on(place: Place, repository: Path, *, turns: int, at_once: int) -> Run:
    home = await place.home()
    token = await place.apart(admin_token, home)
    gateway = ServedGateway.start(home, token=token)
    try:
        async with httpx2.AsyncClient(base_url=gateway.url, timeout=60, trust_env=False) as http:
            await gateway.answers(http, seconds_max=_START_SECONDS_MAX)
        url = f"{gateway.url}/{_ADDRESS}"
        await asyncio.to_thread(_push, url, token, repository)
        with _git_served(repository.parent) as (git_url, git_pid):
            scene = _Scene(
                ours=url,
                git=f"{git_url}/{repository.name}",
                folder=home.folder / "clones",
                cpu_ours=lambda: process_seconds(gateway.process.pid) + server_seconds(home),
                cpu_git=lambda: children_seconds(git_pid),
                forget=lambda: asyncio.run(forget_packs(home)),
            )
            scene.folder.mkdir()
            found = await asyncio.to_thread(_measure, scene, turns=turns, at_once=at_once)
    finally:
        gateway.end()
    await place.drop(home)
    return found


async def _history(place: Place, commits: int) -> Path:
    if place.repository is not None:
        return place.repository
    folder = place.folder / f"history-{commits}.git"
    if not folder.exists():
        await asyncio.to_thread(git_history.make_history, folder, commits)
    return folder


async def _run(place: Place) -> Run:
    quick = place.quick
    repository = await _history(place, _COMMITS_QUICK if quick else _COMMITS)
    at_once = _AT_ONCE_QUICK if quick else _AT_ONCE
    return await _run_on(place, repository, turns=1 if quick else _TURNS, at_once=at_once)


async def _run_many(place: Place) -> Run:
    quick = place.quick
    repository = await _history(place, _COMMITS_QUICK if quick else _COMMITS_MANY)
    return await _run_on(place, repository, turns=1 if quick else 3, at_once=0)


_ONE = {
    "pack_bytes": Figure(label="the pack", unit="bytes"),
    "git_bytes": Figure(label="control: Git's own pack", unit="bytes"),
    "bytes_ratio": Figure(label="ours to Git's", unit="times", at_most=0.85),
    "git_seconds": Figure(label="control: git clone", unit="s"),
    "shared_seconds": Figure(label="shared", unit="s"),
    "shared_ratio": Figure(label="shared, to Git's", unit="times", at_most=1.2),
    "cold_seconds": Figure(label="cold", unit="s"),
    "cold_ratio": Figure(label="cold, to Git's", unit="times", at_most=2.5),
    "running_seconds": Figure(label="shared, the client running already", unit="s"),
    "running_ratio": Figure(label="the same, to Git's", unit="times", at_most=0.8),
}
CLONE = Benchmark(
    name="clone",
    about="a history of 1,500 commits cloned through a URL, beside Git over smart HTTP",
    figures={
        **_ONE,
        "at_once_seconds": Figure(label="20 at once", unit="s"),
        "at_once_git_seconds": Figure(label="control: 20 of Git's at once", unit="s"),
        "at_once_ratio": Figure(label="our throughput to Git's", unit="times", at_least=2),
        "at_once_running_seconds": Figure(label="20 at once, the client running already", unit="s"),
        "at_once_running_ratio": Figure(label="its throughput to Git's", unit="times"),
        "at_once_workers_seconds": Figure(label="20 at once, a running client a core", unit="s"),
        "at_once_workers_ratio": Figure(label="their throughput to Git's", unit="times"),
        "client_cpu_ms": Figure(label="a client's processor time a clone", unit="ms"),
        "client_cpu_git_ms": Figure(label="control: Git's", unit="ms"),
        "server_cpu_ms": Figure(label="the server's processor time a clone", unit="ms"),
        "server_cpu_git_ms": Figure(label="control: Git's", unit="ms"),
        "server_cpu_ratio": Figure(label="ours to Git's", unit="times", at_most=0.2),
    },
    run=_run,
)
CLONE_MANY = Benchmark(
    name="clone-many",
    about="a history of 20,000 commits cloned through a URL, beside Git over smart HTTP",
    figures=_ONE,
    run=_run_many,
)
