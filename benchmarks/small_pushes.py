"""A history of a thousand small pushes, fetched whole before its segments are joined and after;
and a `gc` over a million objects of which a hundred thousand are nobody's.

Each small push leaves a segment of one object. The control: as long a history, pushed at once. The
million objects are put into the tables directly; all of them stand in the same segments, so that
rows are removed and no blob is.
"""

from __future__ import annotations

import time
from functools import partial

import asyncpg

from benchmarks import many_objects
from benchmarks.figures import Benchmark, Figure, Run, percentile
from benchmarks.place import CALLER, Home, Place, serving
from benchmarks.synthetic import Line, push_on
from gateway.packs.garbage import Garbage
from gateway.packs.garbage_rows import Kind
from gateway.packs.joining import Joining
from gateway.packs.repos import Repo
from gateway.packs.transaction import reading
from gateway.service import Service
from gateway.wire.body import decode
from gateway.wire.messages import PushObject, PushRequest
from tests.factories import push_body

_PUSHES, _PUSHES_QUICK = 1_000, 20
_OBJECTS, _OBJECTS_QUICK = 1_000_000, 20_000
_FETCHES, _FETCHES_QUICK = 5, 1
# Of the thousand repos that hold the objects; with them a tenth is nobody's.
_ORPHANED = "DELETE FROM object_refs WHERE repo_id LIKE 'filled-%0'"
_COUNT_LIVE = "SELECT count(*) AS n FROM segments WHERE state = 'live'"


async def _pushed_one_by_one(service: Service, line: Line, pushes: int) -> Repo:
    """Each commit's object in a segment of its own; then all commits."""
    repo = await service.repos.ensure(
        owner="bench", slug="small", visibility="public", caller=CALLER
    )
    history = line.grow(pushes)
    for entry in history.objects():
        await service.segments.store(repo.repo_id, [PushObject(**entry)], CALLER)
    request = decode(push_body(history.bundle()), PushRequest, limits=service.settings.wire)
    await service.pushes.push(repo, request, CALLER)
    return repo


async def _fetched(service: Service, repo: Repo, head: str, fetches: int) -> tuple[float, str]:
    """The median of whole packs built, stored and signed, in seconds; and their hash."""
    taken: list[float] = []
    sha256 = ""
    for turn in range(fetches + 1):
        began = time.perf_counter()
        answer = await service.packs.fetch_mpack(
            partial(reading, service.database),
            repo.repo_id,
            want=[head],
            have=[],
            share=False,
            caller=CALLER,
        )
        if turn:  # Plans, code and caches are warm then.
            taken.append(time.perf_counter() - began)
        sha256 = answer.sha256
    return percentile(taken, 50), sha256


async def _live(service: Service) -> int:
    row = await service.database.row(_COUNT_LIVE)
    return int(row["n"])


async def _joins(home: Home, pushes: int, fetches: int) -> Run:
    small, whole = Line("small"), Line("whole")
    async with serving(home, watch=False) as service:
        repo = await _pushed_one_by_one(service, small, pushes)
        segments = await _live(service)
        before, sha256 = await _fetched(service, repo, small.commit_ids[-1], fetches)
        joining = Joining(
            service.database, service.engine.log, service.store, policy=service.settings.pack
        )
        began = time.perf_counter()
        joined = sum([part.count async for part in joining.join(caller=CALLER)])
        seconds = time.perf_counter() - began
        assert joined == segments
        left = await _live(service)
        after, same = await _fetched(service, repo, small.commit_ids[-1], fetches)
        assert same == sha256
        control_repo = await push_on(service, whole, "whole", commits=pushes)
        control, _ = await _fetched(service, control_repo, whole.commit_ids[-1], fetches)
    return {
        "segments": segments,
        "segments_left": left,
        "before_seconds": before,
        "after_seconds": after,
        "control_seconds": control,
        "ratio": after / control,
        "joined_per_second": joined / seconds,
    }


async def _gc(home: Home, objects: int) -> Run:
    async with serving(home, watch=False) as service:
        garbage = Garbage(service.database, service.engine.log, service.store)
        began = time.perf_counter()
        told = {part.kind: part.count async for part in garbage.look()}
        looked = time.perf_counter() - began
        began = time.perf_counter()
        parts = [part async for part in garbage.collect(caller=CALLER)]
        seconds = time.perf_counter() - began
    removed = sum(part.count for part in parts if part.kind is Kind.OBJECT)
    assert removed == told[Kind.OBJECT] == objects // 10
    return {
        "orphans": removed,
        "look_seconds": looked,
        "collect_seconds": seconds,
        "removed_per_second": removed / seconds,
    }


async def _orphan(home: Home) -> None:
    connection = await asyncpg.connect(home.driver_url)
    try:
        await connection.execute(_ORPHANED)
        await connection.execute("VACUUM ANALYZE")
    finally:
        await connection.close()


async def _run(place: Place) -> Run:
    quick = place.quick
    home = await place.home()
    pushes = _PUSHES_QUICK if quick else _PUSHES
    found = dict(await place.apart(_joins, home, pushes, _FETCHES_QUICK if quick else _FETCHES))
    await place.drop(home)
    home = await place.home()
    objects = _OBJECTS_QUICK if quick else _OBJECTS
    await many_objects.fill(home, objects)
    await _orphan(home)
    found |= await place.apart(_gc, home, objects)
    await place.drop(home)
    return found


SMALL_PUSHES = Benchmark(
    name="small-pushes",
    about="a history of a thousand small pushes before and after gc; gc over a million objects",
    figures={
        "segments": Figure(label="segments of the small pushes"),
        "segments_left": Figure(label="segments once they are joined"),
        "before_seconds": Figure(label="the whole history fetched, before", unit="s"),
        "after_seconds": Figure(label="the whole history fetched, after", unit="s"),
        "control_seconds": Figure(label="control: as long a history pushed at once", unit="s"),
        "ratio": Figure(label="after, to the control's", unit="times"),
        "joined_per_second": Figure(label="segments joined", unit="/s"),
        "orphans": Figure(label="objects that nobody holds, of ten times as many"),
        "look_seconds": Figure(label="gc --dry-run over them", unit="s"),
        "collect_seconds": Figure(label="gc over them", unit="s"),
        "removed_per_second": Figure(label="objects removed", unit="/s"),
    },
    run=_run,
)
