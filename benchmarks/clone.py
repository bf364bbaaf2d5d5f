"""A history like that of source code, cloned through a URL; beside it Git itself over smart HTTP.

The history (git_history.py, or the repository given with `--repository`) is imported over HTTP into
the command `serve`. A clone of ours asks for the heads and the pack (zstd, snapshots told by their
changes), downloads it and recomputes every id, in a process of its own and, `running`, in one that
has done so before. The control, in turns with it: `git clone --bare` of the same history from `git
http-backend` on the same machine. Neither checks files out. Then 20 of each at once. The server's
processor time is the gateway's with PostgreSQL's, and Git's own without the HTTP server in front of
it.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import median

import httpx2

from benchmarks import git_history
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
        command = [sys.executable, "-m", "benchmarks.cloning", self.ours]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def start_git(self) -> subprocess.Popen[bytes]:
        into = self.folder / f"git-{next(self._numbers)}"
        return subprocess.Popen(["git", "clone", "--quiet", "--bare", self.git, str(into)])


def _timed(*starts: Callable[[], subprocess.Popen[bytes]]) -> float:
    began = time.perf_counter()
    running = [start() for start in starts]
    codes = [process.wait() for process in running]
    assert not any(codes), codes
    return time.perf_counter() - began


def _measure(scene: _Scene, *, turns: int, at_once: int) -> dict[str, float]:
    cold, shared, running, git = [], [], [], []
    with Client(scene.ours) as client:
        size = clone(client)
        for _ in range(turns):
            git.append(_timed(scene.start_git))
            scene.forget()
            cold.append(_timed(scene.start_ours))
            shared.append(_timed(scene.start_ours))
            began = time.perf_counter()
            clone(client)
            running.append(time.perf_counter() - began)
    git_size = git_history.pack_bytes(scene.folder / "git-0")
    found = {
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
    if not at_once:
        return found
    before = scene.cpu_ours()
    wall = _timed(*[scene.start_ours] * at_once)
    cpu = (scene.cpu_ours() - before) / at_once
    before = scene.cpu_git()
    git_wall = _timed(*[scene.start_git] * at_once)
    git_cpu = (scene.cpu_git() - before) / at_once
    return found | {
        "at_once_seconds": wall,
        "at_once_git_seconds": git_wall,
        "at_once_ratio": git_wall / wall,
        "server_cpu_ms": 1000 * cpu,
        "server_cpu_git_ms": 1000 * git_cpu,
        "server_cpu_ratio": cpu / git_cpu if git_cpu else 0,
    }


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
