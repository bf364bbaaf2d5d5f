"""10,000 leases due within one second, shared out among three replicas.

Each replica is the service in a process of its own, as production puts it together, all on one
database and one store. The leases are real events, appended beforehand, their deadlines spread
evenly over one second. Every `delete_many` of every replica is timed from outside (one monotonic
clock counts for all processes of a machine), and its keys are counted. The database's clock is held
against that one before and after: a clock that is set meanwhile makes every blob early or late by
as much, on all replicas at once.

The control, before it in the same run, deletes as many blobs of the same store and records
nothing: on S3 a bare loop of DeleteObjects with a thousand keys each, on as many connections as the
replicas have workers together.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from benchmarks.database_time import DatabaseTime, database_time
from benchmarks.deletions import Deletions
from benchmarks.figures import Benchmark, Figure, Run
from benchmarks.place import Home, Place, serving
from benchmarks.reclaims import all_granted, all_recorded, grant, in_batches, write_blobs
from benchmarks.usage import Usage
from gateway import environment
from gateway.demo.store import S3Bucket
from gateway.service import Service
from gateway.storage.s3_settings import S3Settings
from leases.ids import new_mpack_id
from leases.model import storage_key

REPLICAS = 3
LEASES, LEASES_QUICK = 10_000, 200
_DUE_WITHIN_SECONDS = 1.0
_PUTS_AT_ONCE = 16
_BLOB = bytes(4096)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Granted:
    """What is due when, by storage key; the control's rate."""

    due: dict[str, float]
    clock: DatabaseTime
    control_per_second: float


async def put_all(service: Service, home: Home, keys: Sequence[str]) -> None:
    """A small blob under each key, of whichever store this home has."""
    if home.s3.s3_bucket is None:
        await asyncio.to_thread(write_blobs, home.folder, keys)
        return
    todo = iter(keys)

    async def put() -> None:
        for key in todo:
            await service.store.put(key, _BLOB)

    async with asyncio.TaskGroup() as group:
        for _ in range(_PUTS_AT_ONCE):
            group.create_task(put())


async def bare_deletions(
    service: Service, home: Home, keys: Sequence[str], *, callers: int
) -> float:
    """Put and then deleted in a bare loop by so many; deleted blobs a second."""
    await put_all(service, home, keys)
    batches = iter(in_batches(keys))

    async def delete() -> None:
        for batch in batches:
            await service.store.delete_many(batch)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(delete())
    return len(keys) / (time.perf_counter() - began)


async def _grant(home: Home, leases: int) -> _Granted:
    """Write the blobs and the leases, while nobody reaps yet in this process."""
    async with serving(home, watch=False) as service:
        mpack_ids = [new_mpack_id() for _ in range(leases)]
        keys = [storage_key(service.engine.log_id, one) for one in mpack_ids]
        control = await bare_deletions(
            service,
            home,
            [f"transient/control/{one}" for one in mpack_ids],
            callers=REPLICAS * service.settings.lease.reap_workers,
        )
        await put_all(service, home, keys)
        clock = await database_time(service.database)
        first = await grant(service, mpack_ids, over_seconds=_DUE_WITHIN_SECONDS)
        assert clock.at(time.monotonic()) < first.timestamp(), "granting took too long"
    step = _DUE_WITHIN_SECONDS / leases
    due = {key: first.timestamp() + number * step for number, key in enumerate(keys)}
    return _Granted(due=due, clock=clock, control_per_second=control)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Share:
    """What one replica deleted, and what was used from the last grant to the last record."""

    deletions: Deletions
    used: Usage


async def _replica(home: Home, leases: int) -> _Share:
    """One of them, until everything is recorded."""
    deletions = Deletions()
    async with serving(home, watched=deletions.watch) as service:
        await all_granted(service, leases)
        before = Usage.now(home)
        await all_recorded(service, leases)
        used = Usage.now(home).since(before)
    return _Share(deletions=deletions, used=used)


async def _clock_of(home: Home) -> DatabaseTime:
    async with serving(home, watch=False) as service:
        return await database_time(service.database)


async def _measure(place: Place, home: Home) -> Run:
    leases = LEASES_QUICK if place.quick else LEASES
    # The first service of a store leaves its mark there; three at once would wait for each other.
    async with serving(home, watch=False):
        pass
    replicas = asyncio.create_task(place.replicas(REPLICAS, _replica, home, leases))
    granted = await place.apart(_grant, home, leases)
    seen = Deletions()
    shares = await replicas
    moved = (await place.apart(_clock_of, home)).offset - granted.clock.offset
    for share in shares:
        seen.add(share.deletions)
    found = seen.against(granted.due, granted.clock, "")
    first = min(granted.due.values())
    last = max(granted.clock.at(gone) for gone in seen.gone.values())
    rate = leases / (last - first)
    return found | {
        "clock_moved_ms": abs(moved) * 1000,
        "replicas": sum(bool(share.deletions.gone) for share in shares),
        "per_second": rate,
        "control_per_second": granted.control_per_second,
        "ratio": rate / granted.control_per_second,
        "keys_sent_ratio": seen.keys_sent / leases,
        "process_cpu_us": 1e6 * sum(share.used.process for share in shares) / leases,
        "postgres_cpu_us": 1e6 * max(share.used.postgres for share in shares) / leases,
    }


async def _run_local(place: Place) -> Run:
    home = await place.home()
    found = await _measure(place, home)
    await place.drop(home)
    return found


async def _run_s3(place: Place) -> Run:
    home = await place.home()
    with closing(S3Bucket(place.folder / "rgw")) as bucket:
        settings, problems = environment.read(S3Settings, bucket.settings())
        assert settings is not None, problems
        found = await _measure(place, replace(home, s3=settings))
    await place.drop(home)
    return found


def _figures(**targets: Figure) -> dict[str, Figure]:
    return {
        "expiries": Figure(label="leases due within a second"),
        "replicas": Figure(label="replicas that took part"),
        "p50_ms": Figure(label="deadline to blob gone, p50", unit="ms"),
        "p99_ms": Figure(label="deadline to blob gone, p99", unit="ms"),
        "max_ms": Figure(label="deadline to blob gone, the last", unit="ms"),
        "early": Figure(label="deleted early", at_most=0, worst=True),
        "clock_moved_ms": Figure(
            label="the database's clock was set by, meanwhile", unit="ms", worst=True
        ),
        "per_second": Figure(label="deleted, from the first deadline on", unit="/s"),
        "control_per_second": Figure(label="control: a bare loop of deletions", unit="/s"),
        "ratio": Figure(label="ours to the control's", unit="times"),
        "keys_sent_ratio": Figure(
            label="deletions asked for, to leases", unit="times", at_most=1.05, worst=True
        ),
        "process_cpu_us": Figure(label="all replicas' processor time a lease", unit="µs"),
        "postgres_cpu_us": Figure(label="PostgreSQL's processor time a lease", unit="µs"),
    } | targets


REPLICAS_LOCAL = Benchmark(
    name="replicas",
    about="10,000 leases due within one second over three replicas, on the local store",
    figures=_figures(
        max_ms=Figure(label="deadline to blob gone, the last", unit="ms", at_most=1000)
    ),
    run=_run_local,
)
REPLICAS_S3 = Benchmark(
    name="replicas-s3",
    about="10,000 leases due within one second over three replicas, on Ceph's S3 gateway",
    figures=_figures(ratio=Figure(label="ours to the control's", unit="times", at_least=0.6)),
    run=_run_s3,
)
