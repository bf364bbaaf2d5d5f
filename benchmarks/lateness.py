"""How long after its deadline a blob is gone, at 200 expiries a second.

Leases are granted at that rate all the while, as a fetch does it: reserved, a blob put into the
local store, activated for three seconds. So the deletions compete with the granting. Each call of
the store's `delete_many` is timed from outside: `early` compares the moment it was called with the
lease's `delete_at`, lateness the moment it answered (the blob gone, its directory synced), both by
the database's clock.

The control has the same grants going on, for leases that live an hour; of each it sets an asyncio
timer to the moment three seconds after the activation, then commits one row and deletes that one
blob. The two take turns. Everything is done twice: with an empty table, and beside a million
leases that are not yet due.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial

from benchmarks import million
from benchmarks.database_time import DatabaseTime, database_time
from benchmarks.deletions import Deletions
from benchmarks.figures import Benchmark, Figure, Run, percentile
from benchmarks.idle import LEASES, LEASES_QUICK
from benchmarks.place import CALLER, Home, Place, serving
from benchmarks.plain_inserts import PlainInserts, plain_inserts
from benchmarks.usage import Usage
from gateway.service import Service
from leases.ids import new_mpack_id
from leases.model import Lease, LeaseKind

_BLOB = bytes(16 * 1024)
_HOUR = 3600.0
_CONTROL_CONNECTIONS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast, how long, and in how many turns."""

    per_second: float = 200.0
    life_seconds: float = 3.0
    turn_seconds: float = 30.0
    turns: int = 2


QUICK = Pace(per_second=50, life_seconds=0.3, turn_seconds=0.4, turns=1)


@dataclass(slots=True)
class _Turns:
    """Both sides of one measurement; `due` collects deadlines by storage key."""

    service: Service
    plain: PlainInserts
    deletions: Deletions
    pace: Pace

    async def ours(self) -> dict[str, float]:
        """Grant for a short life and wait until the last blob is gone."""
        due: dict[str, float] = {}

        async def one() -> None:
            lease = await self._granted(self.pace.life_seconds)
            due[lease.storage_key] = lease.delete_at.timestamp()

        await self._paced(one)
        await self.deletions.wait_for(due)
        return due

    async def control(self) -> dict[str, float]:
        """Grant for an hour; a timer, a commit and a deletion for each."""
        due: dict[str, float] = {}
        turns = asyncio.Queue[int]()
        for caller in range(_CONTROL_CONNECTIONS):
            turns.put_nowait(caller)

        async def one() -> None:
            lease = await self._granted(_HOUR)
            assert lease.activated_at is not None
            clock = self.service.engine.database_clock
            deadline = lease.activated_at.timestamp() + self.pace.life_seconds
            due[lease.storage_key] = deadline
            await asyncio.sleep(deadline - clock.now().timestamp())
            caller = await turns.get()
            await self.plain.insert(caller)
            turns.put_nowait(caller)
            await self.service.store.delete(lease.storage_key)

        await self._paced(one)
        return due

    async def _granted(self, ttl_seconds: float) -> Lease:
        engine, store = self.service.engine, self.service.store
        mpack_id = new_mpack_id()
        lease = await engine.lessor.reserve(
            mpack_id=mpack_id, kind=LeaseKind.PACK, repo_id="benchmark", caller=CALLER
        )
        await store.put(lease.storage_key, _BLOB)
        lease = await engine.lessor.activate(
            mpack_id,
            sha256="0" * 64,
            size_bytes=len(_BLOB),
            ttl_seconds=ttl_seconds,
            caller=CALLER,
        )
        engine.granted(lease)
        return lease

    async def _paced(self, one: Callable[[], Awaitable[None]]) -> None:
        """Begin one at each tick, whether or not the last ones are through."""
        pace = self.pace
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(round(pace.per_second * pace.turn_seconds)):
                await asyncio.sleep(began + number / pace.per_second - time.monotonic())
                group.create_task(_awaited(one()))


async def _awaited(work: Awaitable[None]) -> None:
    await work


async def _measure(home: Home, pace: Pace) -> Run:
    deletions = Deletions()
    async with (
        serving(home, watched=deletions.watch) as service,
        plain_inserts(home, callers=_CONTROL_CONNECTIONS) as plain,
    ):
        turns = _Turns(service, plain, deletions, pace)
        first_turn = min(1.0, pace.turn_seconds / 2)
        warm_up = replace(pace, life_seconds=0.2, turn_seconds=first_turn)
        warming = _Turns(service, plain, deletions, warm_up)
        await warming.ours()
        await warming.control()
        first = await database_time(service.database)
        ours, control = dict[str, float](), dict[str, float]()
        used = []
        for _ in range(pace.turns):
            before = Usage.now(home)
            ours |= await turns.ours()
            used.append(Usage.now(home).since(before))
            control |= await turns.control()
        last = await database_time(service.database)
    clock = DatabaseTime(
        offset=(first.offset + last.offset) / 2,
        error=max(first.error, last.error) + abs(first.offset - last.offset) / 2,
    )
    found = deletions.against(ours, clock, "") | deletions.against(control, clock, "control_")
    return found | {
        "p99_ratio": found["p99_ms"] / found["control_p99_ms"],
        "clock_error_ms": clock.error * 1000,
        "process_percent": percentile([one.process_percent for one in used], 50),
        "postgres_percent": percentile([one.postgres_percent for one in used], 50),
    }


async def _run(place: Place) -> Run:
    pace = QUICK if place.quick else Pace()
    leases = LEASES_QUICK if place.quick else LEASES
    empty = await place.home()
    alone = await place.apart(_measure, empty, pace)
    await place.drop(empty)
    full = await place.kept("million", partial(million.fill, leases=leases))
    beside = await place.apart(_measure, full, pace)
    found = dict(alone) | {f"million_{key}": value for key, value in beside.items()}
    return found | {"million_to_alone": beside["p99_ms"] / alone["p99_ms"]}


def _figures(prefix: str, when: str) -> dict[str, Figure]:
    figures = {
        "expiries": Figure(label=f"expiries measured{when}"),
        "p50_ms": Figure(label=f"lateness{when}, p50", unit="ms"),
        "p99_ms": Figure(label=f"lateness{when}, p99", unit="ms", at_most=100),
        "max_ms": Figure(label=f"lateness{when}, maximum", unit="ms", at_most=1000, worst=True),
        "early": Figure(label=f"deleted early{when}", at_most=0, worst=True),
        "control_p50_ms": Figure(label=f"control{when}, p50", unit="ms"),
        "control_p99_ms": Figure(label=f"control{when}, p99", unit="ms"),
        "control_max_ms": Figure(label=f"control{when}, maximum", unit="ms", worst=True),
        "p99_ratio": Figure(label=f"p99 to the control's{when}", unit="times", at_most=3),
        "process_percent": Figure(label=f"the gateway's processor time{when}", unit="%"),
        "postgres_percent": Figure(label=f"PostgreSQL's processor time{when}", unit="%"),
        "clock_error_ms": Figure(label=f"error of the database's time{when}", unit="ms"),
    }
    return {f"{prefix}{key}": figure for key, figure in figures.items()}


LATENESS = Benchmark(
    name="lateness",
    about="from the deadline to the blob gone at 200 expiries a second, while granting as many",
    figures=_figures("", "")
    | _figures("million_", ", a million open")
    | {
        # "Unchanged": within what two runs of the same thing differ on a shared machine.
        "million_to_alone": Figure(
            label="p99 with a million open, to without", unit="times", at_most=1.5
        ),
    },
    run=_run,
)
