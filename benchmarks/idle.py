"""What an idle gateway uses: a million open leases, none of them due.

The service runs in a process of its own; its processor time is read from inside, the server's
from /proc. 100 % is one core.
"""

from __future__ import annotations

import asyncio
from functools import partial

from benchmarks import million
from benchmarks.figures import Benchmark, Figure, Run
from benchmarks.place import Home, Place, serving
from benchmarks.usage import Usage

LEASES = 1_000_000
LEASES_QUICK = 1_000


async def _idle(home: Home, seconds: float) -> Run:
    async with serving(home):
        await asyncio.sleep(min(2.0, seconds))
        began = Usage.now(home)
        await asyncio.sleep(seconds)
        used = Usage.now(home).since(began)
    return {
        "process_percent": used.process_percent,
        "postgres_percent": used.postgres_percent,
        "together_percent": used.process_percent + used.postgres_percent,
    }


async def _run(place: Place) -> Run:
    leases = LEASES_QUICK if place.quick else LEASES
    home = await place.kept("million", partial(million.fill, leases=leases))
    return await place.apart(_idle, home, 0.5 if place.quick else 20.0)


IDLE = Benchmark(
    name="idle",
    about="processor time with a million open leases of which none is due; 100 % is one core",
    figures={
        "process_percent": Figure(label="the gateway's process", unit="%", at_most=5),
        "postgres_percent": Figure(label="PostgreSQL's processes", unit="%"),
        "together_percent": Figure(label="both together", unit="%", at_most=5),
    },
    run=_run,
)
