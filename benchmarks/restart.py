"""A gateway that starts beside a million open leases and 100,000 that are overdue.

It is the real command in a process of its own, on a database and a local store that nobody reaped
since yesterday: each overdue lease has its blob. From its start on, four questions of people on
call are asked over and over until the last overdue blob is gone. The moments of the lifespan are
those of its own log lines; the first deletion is seen in the store; its memory is the most that it
held until the end, compared with the same command's on an empty database, asked the same.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2

from benchmarks import million
from benchmarks.figures import Benchmark, Figure, Run
from benchmarks.idle import LEASES, LEASES_QUICK
from benchmarks.place import Home, Place, serving
from benchmarks.reclaims import write_blobs
from benchmarks.usage import memory_bytes_peak
from gateway.auth import Scope

_OVERDUE, _OVERDUE_QUICK = 100_000, 1_000
_QUESTIONS = ("/readyz", "/v1/leases?limit=100", "/v1/leases?state=active&limit=100", "/metrics")
_EMPTY_SECONDS = 5.0
_WAIT_SECONDS_MAX = 300.0
_END_SECONDS_MAX = 30.0
_POLL_SECONDS = 0.005
_PAUSE_SECONDS = 0.05
_LAST_KEYS = 5000  # The last ones go in no certain order.


@dataclass(slots=True, kw_only=True)
class _Gateway:
    """The command `serve` as a process, what it logged, and what it answered how fast."""

    token: str
    process: subprocess.Popen[bytes]
    port: int
    log: Path
    began: float
    slowest: float = 0.0
    answered: float = 0.0

    @classmethod
    def start(cls, home: Home, *, token: str) -> _Gateway:
        """Run it; nobody waits for it here."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        log = home.folder / "serve.log"
        environ = {
            "MPACK_DATABASE_URL": home.url,
            "MPACK_DATA_DIR": str(home.folder / "blobs"),
            "MPACK_SPOOL_DIR": str(home.folder),
            "MPACK_LOG_FORMAT": "json",
        }
        began = time.time()
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "gateway", "serve", "--port", str(port)],
                env=os.environ | environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        return cls(token=token, process=process, port=port, log=log, began=began)

    async def ask_until(self, over: asyncio.Event) -> None:
        """Put all questions, one caller each; keep the slowest answer, and the first one's time."""
        headers = {"Authorization": f"Bearer {self.token}"}
        url = f"http://127.0.0.1:{self.port}"
        async with (
            httpx2.AsyncClient(base_url=url, headers=headers, timeout=60, trust_env=False) as http,
            asyncio.TaskGroup() as group,
        ):

            async def ask(path: str) -> None:
                while not over.is_set():
                    asked = time.perf_counter()
                    try:
                        answer = await http.get(path)
                    except httpx2.ConnectError:
                        await asyncio.sleep(_POLL_SECONDS)
                        continue
                    assert answer.status_code in (200, 503), (path, answer.status_code)
                    self.slowest = max(self.slowest, time.perf_counter() - asked)
                    self.answered = self.answered or time.time()
                    await asyncio.sleep(_PAUSE_SECONDS)

            for path in _QUESTIONS:
                group.create_task(ask(path))

    def said_at(self, event: str) -> float:
        """When it logged this line."""
        for line in self.log.read_text().splitlines():
            told: dict[str, Any] = json.loads(line)
            if told["event"] == event:
                return datetime.fromisoformat(told["timestamp"]).timestamp()
        raise AssertionError(event)

    def end(self) -> float:
        """End it; the most memory it held, in bytes."""
        held = memory_bytes_peak(self.process.pid)
        self.process.terminate()
        self.process.wait(_END_SECONDS_MAX)
        return held


async def _token(home: Home) -> str:
    """Be there once, so that the store carries its mark; answers a token."""
    async with serving(home) as service:
        return (await service.tokens.create(name="benchmark", scopes=[Scope.ADMIN])).secret


async def _gone(path: Path) -> float:
    """Wait for the end of this blob."""
    async with asyncio.timeout(_WAIT_SECONDS_MAX):
        while path.exists():  # noqa: ASYNC110, ASYNC240  another process deletes it
            await asyncio.sleep(_POLL_SECONDS)
    return time.time()


async def _empty(place: Place) -> float:
    """What it holds with nothing to do, in bytes."""
    home = await place.home()
    gateway = _Gateway.start(home, token=await place.apart(_token, home))
    over = asyncio.Event()
    asking = asyncio.create_task(gateway.ask_until(over))
    await asyncio.sleep(1.0 if place.quick else _EMPTY_SECONDS)
    over.set()
    await asking
    held = gateway.end()
    await place.drop(home)
    return held


async def _run(place: Place) -> Run:
    leases = LEASES_QUICK if place.quick else LEASES
    overdue = _OVERDUE_QUICK if place.quick else _OVERDUE
    empty = await _empty(place)
    home = await place.home()
    token = await place.apart(_token, home)
    keys = await million.fill(home, leases, overdue=overdue)
    await asyncio.to_thread(write_blobs, home.folder, keys)
    gateway = _Gateway.start(home, token=token)
    over = asyncio.Event()
    asking = asyncio.create_task(gateway.ask_until(over))
    first_gone = await _gone(home.folder / "blobs" / keys[0])
    for key in keys[-_LAST_KEYS:]:
        last_gone = await _gone(home.folder / "blobs" / key)
    over.set()
    await asking
    held = gateway.end()
    began = gateway.said_at("Waiting for application startup.")
    serves = gateway.said_at("Application startup complete.")
    await place.drop(home)
    return {
        "exec_seconds": gateway.answered - gateway.began,
        "lifespan_seconds": serves - began,
        "first_seconds": first_gone - serves,
        "all_seconds": last_gone - serves,
        "per_second": overdue / (last_gone - first_gone),
        "slowest_ms": gateway.slowest * 1000,
        "held_mib": held / 2**20,
        "more_mib": (held - empty) / 2**20,
    }


RESTART = Benchmark(
    name="restart",
    about="a start beside a million open leases and 100,000 overdue ones, each with its blob",
    figures={
        "exec_seconds": Figure(label="from exec to the first answer", unit="s", at_most=3),
        "lifespan_seconds": Figure(label="the lifespan's start", unit="s", at_most=1),
        "first_seconds": Figure(label="from then to the first blob gone", unit="s", at_most=2),
        "all_seconds": Figure(label="from then to the last blob gone", unit="s"),
        "per_second": Figure(label="overdue blobs deleted", unit="/s"),
        "slowest_ms": Figure(
            label="the slowest answer meanwhile", unit="ms", at_most=1000, worst=True
        ),
        "held_mib": Figure(label="memory, the most", unit="MiB"),
        "more_mib": Figure(
            label="more memory than with an empty database", unit="MiB", at_most=50, worst=True
        ),
    },
    run=_run,
)
