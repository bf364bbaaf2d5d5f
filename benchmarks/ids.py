"""The longest lists that clients send: a million ids to filter-objects, 100,000 haves to fetch.

The command `serve` in a process of its own, asked over HTTP as the Muse client asks. The repo
holds half of the million objects; of the haves all of its commits but the newest; the other ids are
nobody's.
Memory is the most the process held until then, less what it held when it had answered once.

The control, before it: the same million ids looked up by one statement on a bare connection.
"""

from __future__ import annotations

import random
import time
from typing import Any

import asyncpg
import httpx2
import msgpack

from benchmarks.figures import Benchmark, Figure, Run
from benchmarks.place import CALLER, Home, Place, serving
from benchmarks.served import ServedGateway, admin_token
from benchmarks.usage import memory_bytes_peak
from gateway.wire.body import decode
from gateway.wire.messages import PushRequest
from tests.factories import History, push_body

_OBJECTS, _OBJECTS_QUICK = 1_000_000, 2_000
_HAVES, _HAVES_QUICK = 100_000, 500
_COMMITS, _COMMITS_QUICK = 20_000, 100
_START_SECONDS_MAX = 30.0
_HELD = """
INSERT INTO object_refs (repo_id, object_id) SELECT $1, unnest($2::text[])
"""
_LOOKED_UP = "SELECT object_id FROM object_refs WHERE repo_id = $1 AND object_id = ANY ($2::text[])"


def _ids(chance: random.Random, count: int) -> list[str]:
    return [f"{chance.getrandbits(256):064x}" for _ in range(count)]


async def _prepare(home: Home, held: list[str], commits: int) -> tuple[str, list[str]]:
    """Push a line of commits and make the objects the repo's; its id, and the commits' ids."""
    history = History()
    made = history.commit({})
    for _ in range(commits - 1):
        made = history.commit({}, parents=[made])
    async with serving(home, watch=False) as service:
        repo = await service.repos.ensure(
            owner="bench", slug="ids", visibility="public", caller=CALLER
        )
        body = push_body(history.bundle())
        request = decode(body, PushRequest, limits=service.settings.wire)
        await service.pushes.push(repo, request, CALLER)
        await service.database.execute(_HELD, repo.repo_id, held)
    return repo.repo_id, list(history.commits)


async def _control(home: Home, repo_id: str, ids: list[str]) -> float:
    connection = await asyncpg.connect(home.driver_url)
    try:
        began = time.perf_counter()
        await connection.fetch(_LOOKED_UP, repo_id, ids)
        return time.perf_counter() - began
    finally:
        await connection.close()


async def _run(place: Place) -> Run:
    home = await place.home()
    objects = _OBJECTS_QUICK if place.quick else _OBJECTS
    haves = _HAVES_QUICK if place.quick else _HAVES
    chance = random.Random(4)
    ids = _ids(chance, objects)
    commits = _COMMITS_QUICK if place.quick else _COMMITS
    token = await place.apart(admin_token, home)
    repo_id, made = await place.apart(_prepare, home, ids[: objects // 2], commits)
    control = await _control(home, repo_id, ids)
    have = [*made[:-1], *_ids(chance, haves)][:haves]
    chance.shuffle(have)
    gateway = ServedGateway.start(home, token=token)
    try:
        async with httpx2.AsyncClient(base_url=gateway.url, timeout=60, trust_env=False) as http:
            await gateway.answers(http, seconds_max=_START_SECONDS_MAX)

            async def ask(call: str, body: dict[str, Any]) -> tuple[float, dict[str, Any], float]:
                content = msgpack.packb(body)
                before = memory_bytes_peak(gateway.process.pid)
                began = time.perf_counter()
                answer = await http.post(f"/bench/ids/{call}", content=content)
                seconds = time.perf_counter() - began
                assert answer.status_code == 200, answer.text[:200]
                told: dict[str, Any] = msgpack.unpackb(answer.content)
                more = memory_bytes_peak(gateway.process.pid) - before
                return seconds, told, more / 2**20

            fetched = await ask("fetch", {"want": [made[-1]], "have": have})
            filtered = await ask("filter-objects", {"object_ids": ids})
    finally:
        gateway.end()
    assert len(fetched[1]["commits"]) == 1
    assert len(filtered[1]["missing"]) == objects - objects // 2
    await place.drop(home)
    return {
        "objects": objects,
        "filter_seconds": filtered[0],
        "control_seconds": control,
        "ratio": filtered[0] / control,
        "filter_mib": filtered[2],
        "haves": haves,
        "fetch_seconds": fetched[0],
        "fetch_mib": fetched[2],
    }


IDS = Benchmark(
    name="ids",
    about="the longest lists: a million ids to filter-objects, 100,000 haves to fetch",
    figures={
        "objects": Figure(label="ids in filter-objects, half of them the repo's"),
        "filter_seconds": Figure(label="filter-objects", unit="s"),
        "control_seconds": Figure(label="control: one bare statement", unit="s"),
        "ratio": Figure(label="ours to the control's", unit="times"),
        "filter_mib": Figure(label="more memory for it, the most", unit="MiB"),
        "haves": Figure(label="haves in fetch, of a client that lacks one commit"),
        "fetch_seconds": Figure(label="fetch", unit="s"),
        "fetch_mib": Figure(label="more memory for it, the most", unit="MiB"),
    },
    run=_run,
)
