"""The proof of a long log: of the whole, of its end, and the lease table mended from it.

A log of a million leases, most of them reclaimed, appended by the database's own function. While
the table is mended, of which one row in a hundred was spoiled, leases are granted one after the
other; the slowest grant says how long the service was held up.
"""

from __future__ import annotations

import asyncio
import time

import asyncpg

from benchmarks import long_log
from benchmarks.figures import Benchmark, Figure, Run
from benchmarks.place import CALLER, Home, Place, serving
from gateway.service import Service
from leases.audit import TAIL_EVENTS, TAIL_PAGE
from leases.ids import new_mpack_id
from leases.model import LeaseKind

_SPOIL = """
UPDATE mpack_leases SET delete_at = delete_at + interval '1 hour'
WHERE mpack_id IN (SELECT mpack_id FROM mpack_leases ORDER BY mpack_id LIMIT $1)
"""
_CLI_PAGE = 5000


async def _grant_until(service: Service, over: asyncio.Event) -> float:
    """Reserve, again and again; the slowest one's seconds."""
    slowest = 0.0
    while not over.is_set():
        began = time.perf_counter()
        await service.engine.lessor.reserve(
            mpack_id=new_mpack_id(), kind=LeaseKind.PACK, repo_id="benchmark", caller=CALLER
        )
        slowest = max(slowest, time.perf_counter() - began)
    return slowest


async def _measured(home: Home, leases: int) -> Run:
    found: dict[str, float] = {}
    async with serving(home, watch=False) as service:
        auditor = service.engine.auditor
        for name, page in (("newest_seconds", _CLI_PAGE), ("newest_paced_seconds", TAIL_PAGE)):
            began = time.perf_counter()
            verdict = await auditor.verify_tail(TAIL_EVENTS, page=page)
            found[name] = time.perf_counter() - began
            assert verdict.ok, verdict.problems
        began = time.perf_counter()
        verdict = await auditor.verify()
        found["verify_seconds"] = time.perf_counter() - began
        assert verdict.ok, verdict.problems
        found["events"] = verdict.events
        connection = await asyncpg.connect(home.driver_url)
        try:
            await connection.execute(_SPOIL, leases // 100)
        finally:
            await connection.close()
        over = asyncio.Event()
        granting = asyncio.ensure_future(_grant_until(service, over))
        began = time.perf_counter()
        assert await auditor.rebuild() == leases // 100
        found["rebuild_seconds"] = time.perf_counter() - began
        over.set()
        found["slowest_grant_ms"] = await granting * 1000
    return found


async def _run(place: Place) -> Run:
    leases = long_log.LEASES_QUICK if place.quick else long_log.LEASES

    async def prepare(home: Home) -> None:
        await long_log.fill(home, leases)

    return await place.apart(_measured, await place.kept("long log", prepare), leases)


AUDIT = Benchmark(
    name="audit",
    about="a log of a million leases proven, and the lease table mended from it",
    figures={
        "events": Figure(label="events in the log"),
        "verify_seconds": Figure(label="`audit verify`", unit="s", at_most=60),
        "newest_seconds": Figure(label="the newest 10,000 events", unit="s", at_most=0.2),
        "newest_paced_seconds": Figure(label="the same as the service does it", unit="s"),
        "rebuild_seconds": Figure(
            label="`audit rebuild`, one row in a hundred wrong", unit="s", at_most=15
        ),
        "slowest_grant_ms": Figure(label="the slowest grant meanwhile", unit="ms", worst=True),
    },
    run=_run,
)
