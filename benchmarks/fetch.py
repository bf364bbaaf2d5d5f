"""A whole history fetched, cold and shared, and one commit fetched by who has its parent.

The command `serve` in a process of its own, asked over HTTP. The whole history (500 commits, 699
objects, 14.3 MB) is asked for behind a URL; cold means that a new pack is built, put and leased;
shared that one is there. One commit is asked for with its parent as the only have, each time
another commit, so that each pack is built; in histories one, ten and a hundred times as long.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import asyncpg
import httpx2
import msgpack

from benchmarks.figures import Benchmark, Figure, Run, percentile
from benchmarks.place import Home, Place
from benchmarks.served import ServedGateway, admin_token
from benchmarks.synthetic import COMMITS, push_line

_TIMES = (1, 10, 100)
_TIMES_QUICK = (1, 2, 3)
_COMMITS_QUICK = 20
_START_SECONDS_MAX = 30.0
_COLD, _SHARED, _ONES = 5, 50, 50


class _Asked:
    """The answers to one repo's fetches."""

    def __init__(self, http: httpx2.AsyncClient, slug: str) -> None:
        self._http = http
        self._address = f"/bench/{slug}/fetch"

    async def mpack(self, want: str, have: list[str], **more: Any) -> tuple[float, dict[str, Any]]:
        """Milliseconds to the URL, and the answer."""
        body = msgpack.packb({"want": [want], "have": have, **more})
        began = time.perf_counter()
        answer = await self._http.post(f"{self._address}/mpack", content=body)
        taken = 1000 * (time.perf_counter() - began)
        assert answer.status_code == 200, answer.text[:200]
        return taken, msgpack.unpackb(answer.content)

    async def inline(self, want: str) -> float:
        """Milliseconds to the last byte of the pack in the answer itself."""
        body = msgpack.packb({"want": [want], "have": []})
        began = time.perf_counter()
        answer = await self._http.post(self._address, content=body)
        assert answer.status_code == 200, answer.text[:200]
        return 1000 * (time.perf_counter() - began)


async def _whole(asked: _Asked, head: str, *, quick: bool) -> dict[str, float]:
    await asked.mpack(head, [], share=False)  # Plans, code and caches are warm then.
    cold = []
    for _ in range(1 if quick else _COLD):
        taken, told = await asked.mpack(head, [], share=False)
        cold.append(taken)
    await asked.mpack(head, [])
    shared = [(await asked.mpack(head, []))[0] for _ in range(2 if quick else _SHARED)]
    inline = [await asked.inline(head) for _ in range(1 if quick else _COLD)]
    return {
        "pack_mb": told["size_bytes"] / 1e6,
        "cold_seconds": percentile(cold, 50) / 1000,
        "shared_p50_ms": percentile(shared, 50),
        "inline_p50_ms": percentile(inline, 50),
    }


async def _ones(asked: _Asked, ids: list[str], *, quick: bool) -> tuple[float, float]:
    """The median, in ms, and the largest pack, in bytes, of single commits."""
    taken, sizes = [], []
    for at in range(-(2 if quick else _ONES), 0):
        ms, told = await asked.mpack(ids[at], [ids[at - 1]])
        assert told["counts"] == {"commits": 1, "snapshots": 1, "objects": 1}
        taken.append(ms)
        sizes.append(told["size_bytes"])
    return percentile(taken, 50), max(sizes)


def _slug(times: int) -> str:
    return f"times-{times}"


async def prepare(place: Place) -> tuple[Home, dict[int, list[str]]]:
    """One home with three repos, and the ids of their commits by how many times 500 they have."""
    commits = _COMMITS_QUICK if place.quick else COMMITS
    pushed: dict[int, list[str]] = {}

    async def push(home: Home) -> None:
        for times in _TIMES_QUICK if place.quick else _TIMES:
            pushed[times] = await place.apart(push_line, home, _slug(times), times * commits)

        await settle(home)

    home = await place.kept("fetch", push)
    if pushed:
        _IDS[place] = pushed
    return home, _IDS[place]


async def settle(home: Home) -> None:
    """What was just pushed goes to the disk, and the tables are looked over, before it is timed."""
    connection = await asyncpg.connect(home.driver_url)
    try:
        await connection.execute("VACUUM ANALYZE")
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()
    await asyncio.to_thread(os.sync)


_IDS: dict[Place, dict[int, list[str]]] = {}


async def _run(place: Place) -> Run:
    home, pushed = await prepare(place)
    gateway = ServedGateway.start(home, token=await place.apart(admin_token, home))
    try:
        async with httpx2.AsyncClient(base_url=gateway.url, timeout=60, trust_env=False) as http:
            await gateway.answers(http, seconds_max=_START_SECONDS_MAX)
            once = _Asked(http, _slug(1))
            found = await _whole(once, pushed[1][-1], quick=place.quick)
            for times, shown in zip(pushed, _TIMES, strict=True):
                asked = _Asked(http, _slug(times))
                p50, size = await _ones(asked, pushed[times], quick=place.quick)
                found |= {f"one_p50_ms_{shown}": p50, f"one_bytes_{shown}": size}
    finally:
        gateway.end()
    return found


def _one(times: int) -> dict[str, Figure]:
    history = f"of {COMMITS * times:,} commits"
    return {
        f"one_p50_ms_{times}": Figure(
            label=f"one commit, history {history}, p50", unit="ms", at_most=25
        ),
        f"one_bytes_{times}": Figure(
            label=f"one commit, history {history}", unit="bytes", at_most=32_000, worst=True
        ),
    }


FETCH = Benchmark(
    name="fetch",
    about="a history of 500 commits fetched whole, cold and shared; one commit of long histories",
    figures={
        "pack_mb": Figure(label="the whole pack", unit="MB"),
        "cold_seconds": Figure(label="planned, built, put, leased, signed", unit="s", at_most=0.4),
        "shared_p50_ms": Figure(label="shared, p50", unit="ms", at_most=15),
        "inline_p50_ms": Figure(label="shared, in the answer itself, p50", unit="ms"),
        **{name: figure for times in _TIMES for name, figure in _one(times).items()},
    },
    run=_run,
)
