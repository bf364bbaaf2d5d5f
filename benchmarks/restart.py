"""A gateway that starts beside a million open leases and 100,000 that are overdue.

It is the real command in a process of its own, on a database and a local store that nobody reaped
since yesterday: each overdue lease has its blob. From its start on, four questions of people on
call are asked over and over until the last overdue blob is gone. The moments of the lifespan are
those of its own log lines; the first deletion is seen in the store; its memory is the most that it
held until the end, compared with the same command's on an empty database, asked the same.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

import httpx2

from benchmarks import million
from benchmarks.figures import Benchmark, Figure, Run
from benchmarks.idle import LEASES, LEASES_QUICK
from benchmarks.place import Place
from benchmarks.reclaims import write_blobs
from benchmarks.served import ServedGateway, admin_token

_OVERDUE, _OVERDUE_QUICK = 100_000, 1_000
_QUESTIONS = ("/readyz", "/v1/leases?limit=100", "/v1/leases?state=active&limit=100", "/metrics")
_EMPTY_SECONDS = 5.0
_WAIT_SECONDS_MAX = 300.0
_POLL_SECONDS = 0.005
_PAUSE_SECONDS = 0.05
_LAST_KEYS = 5000  # The last ones go in no certain order.


@dataclass(slots=True)
class _Answers:
    """How fast it answered, and when for the first time."""

    slowest: float = 0.0
    first_at: float = 0.0


async def _ask_until(gateway: ServedGateway, over: asyncio.Event, answers: _Answers) -> None:
    """Put all questions, one caller each; keep the slowest answer, and the first one's time."""
    headers = {"Authorization": f"Bearer {gateway.token}"}
    async with (
        httpx2.AsyncClient(
            base_url=gateway.url, headers=headers, timeout=60, trust_env=False
        ) as http,
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
                answers.slowest = max(answers.slowest, time.perf_counter() - asked)
                answers.first_at = answers.first_at or time.time()
                await asyncio.sleep(_PAUSE_SECONDS)

        for path in _QUESTIONS:
            group.create_task(ask(path))


async def _gone(path: Path) -> float:
    """Wait for the end of this blob."""
    async with asyncio.timeout(_WAIT_SECONDS_MAX):
        while path.exists():  # noqa: ASYNC110, ASYNC240  another process deletes it
            await asyncio.sleep(_POLL_SECONDS)
    return time.time()


async def _empty(place: Place) -> float:
    """What it holds with nothing to do, in bytes."""
    home = await place.home()
    gateway = ServedGateway.start(home, token=await place.apart(admin_token, home))
    over, answers = asyncio.Event(), _Answers()
    asking = asyncio.create_task(_ask_until(gateway, over, answers))
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
    token = await place.apart(admin_token, home)
    keys = await million.fill(home, leases, overdue=overdue)
    await asyncio.to_thread(write_blobs, home.folder, keys)
    gateway = ServedGateway.start(home, token=token)
    over, answers = asyncio.Event(), _Answers()
    asking = asyncio.create_task(_ask_until(gateway, over, answers))
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
        "exec_seconds": answers.first_at - gateway.began,
        "lifespan_seconds": serves - began,
        "first_seconds": first_gone - serves,
        "all_seconds": last_gone - serves,
        "per_second": overdue / (last_gone - first_gone),
        "slowest_ms": answers.slowest * 1000,
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
