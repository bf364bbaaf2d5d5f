"""A pack of a gigabyte, fetched from a store: how much memory, how long.

One process pushes a repo of some 7,000 objects of 128 KiB and four of 32 MiB (incompressible, in
segments of 16 MiB). Another one fetches it whole: plan, build, spool, put into the local store
(synced), lease, sign. Its memory is read from /proc: the peak while building less what it held
before, after a small fetch of another repo has warmed it up.

The control, in the same run: the same segments read, hashed and written to one file, synced, in
blocks of a megabyte.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import usage
from benchmarks.figures import Benchmark, Figure, Run
from benchmarks.place import CALLER, Home, Place, serving
from gateway.packs.fetch import FetchAnswer
from gateway.packs.transaction import reading
from gateway.service import Service
from gateway.wire.body import decode
from gateway.wire.ids import object_id_of
from gateway.wire.messages import PushObject, PushRequest
from tests.factories import History, push_body

_MIB = 1 << 20
_SMALL = 128 * 1024
_LARGE = 32 * _MIB
_CHUNK_BYTES = 16 * _MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a repo holds, and whose it is."""

    slug: str
    small: int
    large: int


_FULL = Contents(slug="full", small=7_168, large=4)
_QUICK = Contents(slug="full", small=64, large=0)
_WARM_UP = Contents(slug="warm-up", small=32, large=0)


async def _push(home: Home, contents: Contents) -> None:
    chance = random.Random(contents.slug)
    sizes = [_SMALL] * contents.small + [_LARGE] * contents.large
    history, manifest = History(), dict[str, str]()
    async with serving(home, watch=False) as service:
        repo = await service.repos.ensure(
            owner="bench", slug=contents.slug, visibility="public", caller=CALLER
        )
        waiting: list[PushObject] = []
        for number, size in enumerate(sizes):
            content = chance.randbytes(size)
            object_id = manifest[f"data/{number:05}.bin"] = object_id_of(content)
            waiting.append(PushObject(object_id=object_id, content=content))
            if sum(len(one.content) for one in waiting) >= _CHUNK_BYTES:
                await service.segments.store(repo.repo_id, waiting, CALLER)
                waiting = []
        if waiting:
            await service.segments.store(repo.repo_id, waiting, CALLER)
        history.commit(manifest)
        request = decode(push_body(history.bundle()), PushRequest, limits=service.settings.wire)
        await service.pushes.push(repo, request, CALLER)


async def _fetch(service: Service, slug: str) -> FetchAnswer:
    repo = await service.repos.ensure(owner="bench", slug=slug, visibility="public", caller=CALLER)
    rows = await service.database.fetch(
        "SELECT head_commit_id FROM branches WHERE repo_id = $1", repo.repo_id
    )
    return await service.packs.fetch_mpack(
        partial(reading, service.database),
        repo.repo_id,
        want=[row["head_commit_id"] for row in rows],
        have=[],
        ttl_seconds=600,
        share=False,
        caller=CALLER,
    )


def _copy(segments: Path, to: Path) -> None:
    digest = hashlib.sha256()
    with to.open("wb", buffering=0) as written:
        for path in sorted(segments.iterdir()):
            with path.open("rb", buffering=0) as read:
                while block := read.read(_MIB):
                    digest.update(block)
                    written.write(block)
        os.fsync(written.fileno())
    to.unlink()


async def _measure(home: Home, slug: str) -> Run:
    segments = home.folder / "blobs" / "segments"
    async with serving(home, watch=False) as service:
        await _fetch(service, _WARM_UP.slug)
        began = time.perf_counter()
        await asyncio.to_thread(_copy, segments, home.folder / "copy")
        control = time.perf_counter() - began
        usage.forget_memory_peak()
        held, began, busy = usage.memory_bytes(), time.perf_counter(), time.process_time()
        answer = await _fetch(service, slug)
        seconds, busy = time.perf_counter() - began, time.process_time() - busy
        peak = usage.memory_bytes_peak()
    return {
        "pack_mb": answer.size_bytes / 1e6,
        "growth_mib": (peak - held) / _MIB,
        "before_mib": held / _MIB,
        "seconds": seconds,
        "mb_per_second": answer.size_bytes / 1e6 / seconds,
        "cpu_seconds": busy,
        "control_seconds": control,
        "share_percent": 100 * control / seconds,
    }


async def _run(place: Place) -> Run:
    contents = _QUICK if place.quick else _FULL

    async def prepare(home: Home) -> None:
        await place.apart(_push, home, _WARM_UP)
        await place.apart(_push, home, contents)

    home = await place.kept("packs", prepare)
    return await place.apart(_measure, home, contents.slug)


PACKS = Benchmark(
    name="packs",
    about="a pack of a gigabyte planned, built, put and leased, beside a plain copy with a hash",
    figures={
        "pack_mb": Figure(label="the pack", unit="MB"),
        "growth_mib": Figure(label="memory grown by, at the peak", unit="MiB", at_most=96),
        "before_mib": Figure(label="memory held before", unit="MiB"),
        "seconds": Figure(label="planned, built, put, leased", unit="s"),
        "mb_per_second": Figure(label="the same", unit="MB/s"),
        "cpu_seconds": Figure(label="the gateway's processor time", unit="s"),
        "control_seconds": Figure(label="control: read, hash, write, sync", unit="s"),
        "share_percent": Figure(label="its speed to the control's", unit="%", at_least=60),
    },
    run=_run,
)
