"""64 callers who ask for the same whole history at once, shared out among three replicas.

Three commands `serve` on one database and one local store. One pack of the same history is built
first for a single caller (unshared), three times: that is what a build takes. Then all 64 ask at
once for the pack that nobody has built yet. Each build reserves a lease and puts one blob, so the
leases made are counted; memory is that of the three processes together.

The control, in the same run: as many callers on as many new connections, asking the same replicas
for nothing (`/livez`).

The callers share the processors with the replicas, so they are lean (raw_http.py): their requests
are made beforehand, and their answers read when the last one is here.
"""

from __future__ import annotations

import asyncio
import time
from statistics import median
from typing import Any

import asyncpg
import httpx2
import msgpack

from benchmarks.fetch import prepare
from benchmarks.figures import Benchmark, Figure, Run
from benchmarks.place import Home, Place, forget_packs
from benchmarks.raw_http import ask, request_bytes
from benchmarks.served import ServedGateway, admin_token
from benchmarks.usage import forget_memory_peak, memory_bytes, memory_bytes_peak

_REPLICAS = 3
_CALLERS, _CALLERS_QUICK = 64, 6
_START_SECONDS_MAX = 30.0
_SECONDS_MAX = 60.0
_MIB = 1 << 20
_RESERVED = "SELECT count(*) FROM events WHERE type = 'lease.reserved'"


async def _reserved(home: Home) -> int:
    connection = await asyncpg.connect(home.driver_url)
    try:
        return int(await connection.fetchval(_RESERVED))
    finally:
        await connection.close()


def _fetch(wish: dict[str, Any]) -> bytes:
    return request_bytes("POST", "/bench/times-1/fetch/mpack", msgpack.packb(wish))


async def _asked_at_once(
    replicas: list[ServedGateway], request: bytes, callers: int
) -> tuple[float, list[bytes]]:
    """Seconds until so many callers at once have an answer, and the answers."""
    ports = [replicas[at % _REPLICAS].port for at in range(callers)]
    began = time.perf_counter()
    async with asyncio.timeout(_SECONDS_MAX):
        answers = await asyncio.gather(*(ask(port, request) for port in ports))
    return time.perf_counter() - began, answers


async def _run(place: Place) -> Run:
    home, pushed = await prepare(place)
    callers = _CALLERS_QUICK if place.quick else _CALLERS
    token = await place.apart(admin_token, home)
    wish = {"want": [pushed[1][-1]], "have": []}
    alone, shared = _fetch(wish | {"share": False}), _fetch(wish | {"ttl_seconds": 600})
    await forget_packs(home)
    replicas = [
        ServedGateway.start(home, token=token, name=f"serve-{number}")
        for number in range(_REPLICAS)
    ]
    pids = [replica.process.pid for replica in replicas]
    try:
        for replica in replicas:
            async with httpx2.AsyncClient(base_url=replica.url, trust_env=False) as one:
                await replica.answers(one, seconds_max=_START_SECONDS_MAX)
        taken = []
        for _ in range(1 if place.quick else 2):
            for replica in replicas:
                began = time.perf_counter()
                await ask(replica.port, alone)
                taken.append(time.perf_counter() - began)
        nothing = request_bytes("GET", "/livez")
        control, _answers = await _asked_at_once(replicas, nothing, callers)
        build = median(taken[_REPLICAS:] or taken)
        reserved = await _reserved(home)
        held = sum(map(memory_bytes, pids))
        for pid in pids:
            forget_memory_peak(pid)
        wall, answers = await _asked_at_once(replicas, shared, callers)
        more = sum(map(memory_bytes_peak, pids)) - held
        reserved = await _reserved(home) - reserved
    finally:
        for replica in replicas:
            replica.end()
    return {
        "callers": callers,
        "packs": len({msgpack.unpackb(answer)["mpack_id"] for answer in answers}),
        "puts": reserved,
        "build_seconds": build,
        "wall_seconds": wall,
        "wall_builds": wall / build,
        "control_seconds": control,
        "more_mib": more / _MIB,
    }


HERD = Benchmark(
    name="herd",
    about="64 identical fetches of a whole history at once, over three replicas",
    figures={
        "callers": Figure(label="callers at once"),
        "packs": Figure(label="packs they were given", at_most=1, worst=True),
        "puts": Figure(label="builds, each with its PUT", at_most=1, worst=True),
        "build_seconds": Figure(label="one build for one caller", unit="s"),
        "wall_seconds": Figure(label="until the last one is answered", unit="s"),
        "wall_builds": Figure(label="the same, in builds", unit="times", at_most=1.3),
        "control_seconds": Figure(label="control: as many empty answers at once", unit="s"),
        "more_mib": Figure(
            label="more memory, the three together", unit="MiB", at_most=64, worst=True
        ),
    },
    run=_run,
)
