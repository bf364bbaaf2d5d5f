"""How cost grows: six things at 1, 10 and 100 times the history, the objects, the open leases.

Each of the nine places is a database of its own, in which one thing is made large and the others
are as small as at 1: a history of 500 commits, 10,000 objects of other repos, 10,000 open leases
that are not due. In each the same is done by one caller, inside a service in a process of its own:
a chunk of 100 new objects stored; one commit pushed on top; one commit fetched by who has its
parent, each time another; a shared pack asked for; a lease reserved and activated; one due lease
claimed.

The control is a plain row committed, in turns with them: what it says besides is the machine's.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from functools import partial
from uuid import uuid4

from benchmarks import many_objects, million
from benchmarks.fetch import settle
from benchmarks.figures import Benchmark, Figure, Run, percentile
from benchmarks.place import CALLER, Home, Place, serving
from benchmarks.plain_inserts import PlainInserts, plain_inserts
from benchmarks.synthetic import COMMITS, Line, push_on
from gateway.packs.repos import Repo
from gateway.packs.transaction import reading
from gateway.service import Service
from gateway.wire.body import decode
from gateway.wire.messages import PushObject, PushRequest
from leases.claims import Claims
from leases.ids import new_mpack_id
from leases.model import LeaseKind
from leases.postgres_ledger import PostgresLedger
from tests.factories import History, push_body

TIMES = (1, 10, 100)
_TIMES_QUICK = (1, 2, 3)
_OBJECTS, _LEASES = 10_000, 10_000
_QUICK_TO_WHOLE = 50  # A quick run has a fiftieth of everything.
_CHUNK_OBJECTS = 100
_TURNS, _TURNS_QUICK = 40, 2
_SLUG = "growth"

DIMENSIONS = {
    "history": f"commits in the repo, from {COMMITS:,} on",
    "objects": f"objects in the store, from {_OBJECTS:,} on",
    "leases": f"open leases, from {_LEASES:,} on",
}
WORK = {
    "chunk": "a chunk of 100 objects stored",
    "push": "one commit pushed on top",
    "fetch": "one commit fetched, have = its parent",
    "shared": "a shared pack",
    "lease": "a lease reserved and activated",
    "claim": "one due lease claimed",
    "control": "control: one plain row committed",
}

Turn = Callable[[], Awaitable[object]]


class _Work:
    """What is timed: `before` makes what a turn needs, the turn itself is the rest."""

    def __init__(self, service: Service, repo: Repo, line: Line, plain: PlainInserts) -> None:
        self._service, self._repo, self._line, self._plain = service, repo, line, plain
        self._chance = random.Random("growth")
        self._ids = list(line.commit_ids)
        self._fetched = 1
        ledger = PostgresLedger(service.database)
        engine = service.engine
        self._claims = Claims(
            ledger,
            engine.instance,
            service.clock,
            database_clock=engine.database_clock,
            limit_seconds=30,
        )

    async def chunk(self) -> Turn:
        history = History()
        for _ in range(_CHUNK_OBJECTS):
            history.content(self._chance.randbytes(1024))
        objects = [PushObject(**entry) for entry in history.objects()]
        return partial(self._service.segments.store, self._repo.repo_id, objects, CALLER)

    async def push(self) -> Turn:
        history = self._line.grow(1)
        objects = [PushObject(**entry) for entry in history.objects()]
        await self._service.segments.store(self._repo.repo_id, objects, CALLER)
        body = push_body(history.bundle())
        request = decode(body, PushRequest, limits=self._service.settings.wire)
        return partial(self._service.pushes.push, self._repo, request, CALLER)

    async def fetch(self) -> Turn:
        self._fetched += 1
        return partial(self._fetch, -self._fetched)

    async def shared(self) -> Turn:
        await self._fetch(-1)
        return partial(self._fetch, -1)

    async def lease(self) -> Turn:
        return partial(self._granted, 3600.0)

    async def claim(self) -> Turn:
        await self._granted(0.0001)
        return self._claimed

    async def control(self) -> Turn:
        return self._plain.insert

    async def _fetch(self, at: int) -> None:
        service, ids = self._service, self._ids
        await service.packs.fetch_mpack(
            partial(reading, service.database),
            self._repo.repo_id,
            want=[ids[at]],
            have=[ids[at - 1]],
            caller=CALLER,
        )

    async def _granted(self, ttl_seconds: float) -> None:
        lessor, mpack_id = self._service.engine.lessor, new_mpack_id()
        await lessor.reserve(
            mpack_id=mpack_id, kind=LeaseKind.PACK, repo_id="benchmark", caller=CALLER
        )
        await lessor.activate(
            mpack_id, sha256="0" * 64, size_bytes=1, ttl_seconds=ttl_seconds, caller=CALLER
        )

    async def _claimed(self) -> None:
        assert len(await self._claims.take(1, uuid4())) == 1


async def _measure(home: Home, commits: int, turns: int) -> Run:
    """The median of each work, in ms, in turns."""
    line = Line(_SLUG)
    async with serving(home, watch=False) as service, plain_inserts(home, callers=1) as plain:
        repo = await push_on(service, line, _SLUG, commits=commits)
        await settle(home)
        work = _Work(service, repo, line, plain)
        taken: dict[str, list[float]] = {name: [] for name in WORK}
        for turn in range(turns + 1):
            for name, found in taken.items():
                doing = await getattr(work, name)()
                began = time.perf_counter()
                await doing()
                if turn:  # Plans, code and caches are warm then.
                    found.append(1000 * (time.perf_counter() - began))
    return {name: percentile(found, 50) for name, found in taken.items()}


async def _of_place(place: Place, dimension: str, times: int) -> Run:
    part = _QUICK_TO_WHOLE if place.quick else 1
    sizes = {"history": COMMITS // part, "objects": _OBJECTS // part, "leases": _LEASES // part}
    sizes[dimension] *= times
    home = await place.home()
    await million.fill(home, sizes["leases"])
    await many_objects.fill(home, sizes["objects"])
    turns = _TURNS_QUICK if place.quick else _TURNS
    found = await place.apart(_measure, home, sizes["history"], turns)
    await place.drop(home)
    return found


async def _run(place: Place) -> Run:
    found: dict[str, float] = {}
    for dimension in DIMENSIONS:
        for times, shown in zip(_TIMES_QUICK if place.quick else TIMES, TIMES, strict=True):
            measured = await _of_place(place, dimension, times)
            found |= {f"{name}_{dimension}_{shown}": ms for name, ms in measured.items()}
        for name in WORK:
            once = found[f"{name}_{dimension}_1"]
            found[f"{name}_{dimension}_ratio"] = found[f"{name}_{dimension}_100"] / once
    return found


def _figures(name: str, dimension: str) -> dict[str, Figure]:
    label = f"{WORK[name]}, {dimension}"
    return {
        **{
            f"{name}_{dimension}_{times}": Figure(label=f"{label} at {times}, p50", unit="ms")
            for times in TIMES
        },
        f"{name}_{dimension}_ratio": Figure(
            label=f"{label} at 100 to at 1", unit="times", at_most=TIMES[-1]
        ),
    }


GROWTH = Benchmark(
    name="growth",
    about="how cost grows with the history, the objects in the store and the open leases",
    figures={
        key: figure
        for dimension in DIMENSIONS
        for name in WORK
        for key, figure in _figures(name, dimension).items()
    },
    run=_run,
)
