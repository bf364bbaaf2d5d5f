"""10,000 leases due at one moment, each with a blob in the local store.

The leases are real events, appended beforehand with one `delete_at` in common; their blobs were
written without waiting for the disk, which then has time to settle. From that moment on the
service claims, deletes and records with its four workers. The rate counts until the last
`lease.reclaimed` is recorded, by the database's clock.

The control, before it in the same run: four callers who take a thousand blobs each time, delete
them with the same store, and commit a thousand plain rows in one statement.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from benchmarks import lease_facts
from benchmarks.database_time import database_time
from benchmarks.deletions import Deletions
from benchmarks.figures import Benchmark, Figure, Run
from benchmarks.place import Home, Place, serving
from benchmarks.plain_inserts import plain_inserts
from benchmarks.usage import Usage
from gateway.service import Service
from leases.ids import new_mpack_id
from leases.log import NewEvent
from leases.model import storage_key

_BATCH = 1000
_WORKERS = 4
_BLOB = bytes(4096)
# So many are appended before the deadline in each second; several times as many are possible.
_GRANTED_PER_SECOND = 1500
_POLL_SECONDS = 0.05
_RECORDED = """
SELECT count(*) AS recorded, extract(epoch FROM max(recorded_at)) AS last
FROM events WHERE type = 'lease.reclaimed'
"""


def write_blobs(folder: Path, keys: Sequence[str]) -> None:
    """Put a small blob under each key, and let the disk settle."""
    for key in keys:
        path = folder / "blobs" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_BLOB)
    os.sync()


def in_batches(items: Sequence[str]) -> list[Sequence[str]]:
    """As many at a time as one claim or one request takes."""
    return [items[start : start + _BATCH] for start in range(0, len(items), _BATCH)]


async def grant(
    service: Service, mpack_ids: Sequence[str], *, over_seconds: float = 0.0
) -> datetime:
    """Append the facts of these leases; answers the moment at which the first is due.

    They fall due all at that moment, or one after the other for so many seconds.
    """
    engine = service.engine
    now = engine.database_clock.now()
    delete_at = now + timedelta(seconds=1 + len(mpack_ids) / _GRANTED_PER_SECOND)
    due_at = {
        one: delete_at + timedelta(seconds=over_seconds * number / len(mpack_ids))
        for number, one in enumerate(mpack_ids)
    }
    for batch in in_batches(mpack_ids):
        facts: list[NewEvent] = [
            lease_facts.reserved(one, log_id=engine.log_id, now=now) for one in batch
        ]
        await engine.log.append(facts)
        facts = [lease_facts.activated(one, now=now, delete_at=due_at[one]) for one in batch]
        await engine.log.append(facts)
    engine.alarm.arm(delete_at)
    return delete_at


async def _control(home: Home, service: Service, keys: Sequence[str]) -> float:
    """The least work that deletes and records as many; blobs a second."""
    await asyncio.to_thread(write_blobs, home.folder, keys)
    batches = asyncio.Queue[Sequence[str]]()
    for batch in in_batches(keys):
        batches.put_nowait(batch)
    async with plain_inserts(home, callers=_WORKERS) as plain:

        async def work(caller: int) -> None:
            while not batches.empty():
                batch = batches.get_nowait()
                await service.store.delete_many(batch)
                await plain.insert_many(caller, len(batch))

        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for caller in range(_WORKERS):
                group.create_task(work(caller))
        return len(keys) / (time.perf_counter() - began)


async def all_granted(service: Service, leases: int) -> None:
    """Wait until so many leases are reserved and active."""
    while True:
        if (await service.engine.log.head())["position"] >= 2 * leases:
            return
        await asyncio.sleep(_POLL_SECONDS)


async def all_recorded(service: Service, leases: int) -> float:
    """Wait for the last record; its time by the database's clock, in epoch seconds."""
    while True:
        # Counting takes the server milliseconds, which it has better use for until the last one.
        if (await service.engine.log.head())["position"] >= 3 * leases:
            row = await service.database.row(_RECORDED)
            if row["recorded"] == leases:
                return float(row["last"])
        await asyncio.sleep(_POLL_SECONDS)


async def _measure(home: Home, leases: int) -> Run:
    deletions = Deletions()
    async with serving(home, watched=deletions.watch) as service:
        mpack_ids = [new_mpack_id() for _ in range(leases)]
        keys = [storage_key(service.engine.log_id, one) for one in mpack_ids]
        control = await _control(home, service, [f"control/{one}" for one in mpack_ids])
        await asyncio.to_thread(write_blobs, home.folder, keys)
        clock = await database_time(service.database)
        delete_at = (await grant(service, mpack_ids)).timestamp()
        assert clock.at(time.monotonic()) < delete_at, "granting took too long"
        before = Usage.now(home)
        await deletions.wait_for(keys)
        last = await all_recorded(service, leases)
        used = Usage.now(home).since(before)
    found = deletions.against(dict.fromkeys(keys, delete_at), clock, "")
    rate = leases / (last - delete_at)
    return found | {
        "per_second": rate,
        "recorded_ms": (last - delete_at) * 1000,
        "control_per_second": control,
        "ratio": rate / control,
        "process_cpu_us": 1e6 * used.process / leases,
        "postgres_cpu_us": 1e6 * used.postgres / leases,
    }


async def _run(place: Place) -> Run:
    home = await place.home()
    found = await place.apart(_measure, home, 500 if place.quick else 10_000)
    await place.drop(home)
    return found


RECLAIMS = Benchmark(
    name="reclaims",
    about="10,000 leases due at one moment: claimed, deleted from the local store, recorded",
    figures={
        "expiries": Figure(label="leases due at once"),
        "per_second": Figure(label="claimed, deleted and recorded", unit="/s"),
        "control_per_second": Figure(label="control: deleted, plain rows committed", unit="/s"),
        "ratio": Figure(label="ours to the control's", unit="times"),
        "p50_ms": Figure(label="deadline to blob gone, p50", unit="ms"),
        "p99_ms": Figure(label="deadline to blob gone, p99", unit="ms"),
        "max_ms": Figure(label="deadline to the last blob gone", unit="ms", at_most=1000),
        "recorded_ms": Figure(label="deadline to the last record", unit="ms"),
        "early": Figure(label="deleted early", at_most=0, worst=True),
        "process_cpu_us": Figure(label="the gateway's processor time a lease", unit="µs"),
        "postgres_cpu_us": Figure(label="PostgreSQL's processor time a lease", unit="µs"),
    },
    run=_run,
)
