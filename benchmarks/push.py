"""Objects, commits and snapshots pushed over HTTP, as the Muse client pushes them.

The command `serve` in a process of its own. Objects of 8 KiB go in calls of 400, four at a time;
then 500 commits, each with a snapshot of 200 files, in one call; then the same call again; then one
commit more on top, and on top of histories ten and a hundred times as long. All bodies are made
beforehand. The statements of a chunk are counted inside of a service.

The control, before it: the same bytes hashed and written, a synced file for each chunk.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from pathlib import Path

import httpx2
import msgpack

from benchmarks.figures import Benchmark, Figure, Run, percentile
from benchmarks.place import CALLER, Home, Place, serving
from benchmarks.served import ServedGateway, admin_token
from benchmarks.synthetic import COMMITS, Line, object_chunks
from gateway.wire.messages import PushObject
from tests.factories import History, push_body

_OBJECTS, _OBJECTS_QUICK = 8_000, 250
_COMMITS_QUICK = 20
_CALLS_AT_ONCE = 4
_START_SECONDS_MAX = 30.0
_ONES = 20


def _bodies(history: History) -> list[bytes]:
    return [bytes(msgpack.packb({"objects": chunk})) for chunk in object_chunks(history)]


def _control(folder: Path, bodies: list[bytes]) -> float:
    began = time.perf_counter()
    for number, body in enumerate(bodies):
        hashlib.sha256(body).digest()
        path = folder / f"control-{number}"
        with path.open("wb", buffering=0) as file:
            file.write(body)
            os.fsync(file.fileno())
        path.unlink()
    return time.perf_counter() - began


async def _statements(home: Home) -> int:
    """How many statements a chunk of new objects costs, transactions' ends included."""
    seen: list[str] = []
    chunk = next(object_chunks(Line("statements").grow(200)))
    async with serving(home, watch=False) as service:
        repo = await service.repos.ensure(
            owner="bench", slug="statements", visibility="public", caller=CALLER
        )
        async with service.database.driver() as driver:
            driver.add_query_logger(lambda record: seen.append(record.query))
        await service.segments.store(repo.repo_id, [PushObject(**one) for one in chunk], CALLER)
    return len(seen)


class _Client:
    """One client with a token, and its four connections."""

    def __init__(self, http: httpx2.AsyncClient, token: str) -> None:
        self._http = http
        self._headers = {"Authorization": f"Bearer {token}"}

    async def post(self, call: str, body: bytes) -> None:
        answer = await self._http.post(f"/bench/push/{call}", content=body, headers=self._headers)
        assert answer.status_code == 200, answer.text[:200]

    async def objects(self, bodies: list[bytes]) -> float:
        """All bodies, four at a time; seconds."""
        waiting = iter(bodies)

        async def send() -> None:
            for body in waiting:
                await self.post("push/objects", body)

        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(_CALLS_AT_ONCE):
                group.create_task(send())
        return time.perf_counter() - began

    async def timed(self, body: bytes) -> float:
        """One push; seconds."""
        began = time.perf_counter()
        await self.post("push", body)
        return time.perf_counter() - began


async def _pushed_ones(client: _Client, line: Line) -> float:
    """The median of single commits pushed on top, in ms."""
    taken = []
    for _ in range(_ONES):
        history = line.grow(1)
        await client.objects(_bodies(history))
        taken.append(1000 * await client.timed(push_body(history.bundle())))
    return percentile(taken, 50)


async def _grown(client: _Client, line: Line, commits: int) -> float:
    """Seconds for the commits and snapshots; their objects go before, not timed."""
    seconds = 0.0
    while commits:
        history = line.grow(min(COMMITS, commits))
        commits -= len(history.commits)
        await client.objects(_bodies(history))
        seconds += await client.timed(push_body(history.bundle()))
    return seconds


async def _measure(place: Place, home: Home) -> Run:
    statements = await place.apart(_statements, home)
    token = await place.apart(admin_token, home)
    commits = _COMMITS_QUICK if place.quick else COMMITS
    many = Line("many").grow((_OBJECTS_QUICK if place.quick else _OBJECTS) - 199)
    bodies = _bodies(many)
    control = await asyncio.to_thread(_control, home.folder, bodies)
    line = Line("push")
    first = line.grow(commits)
    push = push_body(first.bundle())
    gateway = ServedGateway.start(home, token=token)
    try:
        async with httpx2.AsyncClient(base_url=gateway.url, timeout=60, trust_env=False) as http:
            await gateway.answers(http, seconds_max=_START_SECONDS_MAX)
            client = _Client(http, token)
            await client.objects(_bodies(first))
            seconds = await client.timed(push)
            again = await client.timed(push)
            one = await _pushed_ones(client, line)
            objects = await client.objects(bodies)
            grown = await _grown(client, line, 9 * commits)
            one_10 = await _pushed_ones(client, line)
    finally:
        gateway.end()
    return {
        "objects_per_second": len(many.contents) / objects,
        "statements": statements,
        "control_per_second": len(many.contents) / control,
        "ratio": control / objects,
        "commits_per_second": commits / seconds,
        "again_seconds": again,
        "commits_per_second_10": 9 * commits / grown,
        "one_p50_ms": one,
        "one_p50_ms_10": one_10,
    }


async def _run(place: Place) -> Run:
    home = await place.home()
    home.folder.mkdir(exist_ok=True)
    found = await _measure(place, home)
    await place.drop(home)
    return found


PUSH = Benchmark(
    name="push",
    about="objects of 8 KiB, then 500 commits with snapshots of 200 files, pushed over HTTP",
    figures={
        "objects_per_second": Figure(label="objects of 8 KiB", unit="/s", at_least=3_000),
        "statements": Figure(label="statements for a chunk of 399 objects", at_most=6),
        "control_per_second": Figure(label="control: hashed, written, synced", unit="/s"),
        "ratio": Figure(label="ours to the control's", unit="times"),
        "commits_per_second": Figure(
            label="commits with snapshots, 500 at once", unit="/s", at_least=1_500
        ),
        "again_seconds": Figure(label="the same call again", unit="s", at_most=0.3),
        "commits_per_second_10": Figure(label="the next 4,500 commits", unit="/s"),
        "one_p50_ms": Figure(label="one commit on top of 500, p50", unit="ms"),
        "one_p50_ms_10": Figure(label="one commit on top of 5,000, p50", unit="ms"),
    },
    run=_run,
)
