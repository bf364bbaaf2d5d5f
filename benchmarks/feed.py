"""From an event's place in the log to the readers of `/v1/events`, while sixteen writers append.

Two commands `serve` on one database, a reader at each (`tests/fault/feeding.py`, whose fault run
kills and cuts as well). The writers, in a process of their own and each with a connection of its
own, append 200 events a second in all, at random moments. An event's time is the one that the
database gave it under the lock of the log's head, before its commit: so the commit counts too.

The control, at the same time: one bare connection that listens and selects what is new.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

import asyncpg
import httpx2

from benchmarks.figures import Benchmark, Figure, Run, percentile
from benchmarks.place import Home, Place
from benchmarks.served import ServedGateway, admin_token
from benchmarks.usage import process_seconds
from tests.fault.feeding import WRITERS, Reader, reading, write

_REPLICAS = 2
_SECONDS, _SECONDS_QUICK = 20.0, 1.0
_REST_SECONDS_MAX = 30.0
_START_SECONDS_MAX = 30.0
_POLL_SECONDS = 0.05
_NEW = "SELECT position FROM events WHERE position > $1 ORDER BY position"
_TIMES = "SELECT position, extract(epoch FROM recorded_at)::float8 AS recorded_at FROM events"


class _BareReader:
    """Listens on a connection of its own; `arrived` says when it knew of which position."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._heard = asyncio.Event()
        self.arrived: dict[int, float] = {}

    async def read(self) -> None:
        """For ever."""
        connection = await asyncpg.connect(self._home.driver_url)
        try:
            await connection.add_listener("mpack_events", lambda *_: self._heard.set())
            last = 0
            while True:
                await self._heard.wait()
                self._heard.clear()
                for row in await connection.fetch(_NEW, last):
                    last = row["position"]
                    self.arrived[last] = time.time()
        finally:
            connection.terminate()


async def _recorded(home: Home) -> dict[int, float]:
    connection = await asyncpg.connect(home.driver_url)
    try:
        return {row["position"]: row["recorded_at"] for row in await connection.fetch(_TIMES)}
    finally:
        await connection.close()


async def _all_read(readers: Sequence[Reader], bare: _BareReader, last: int) -> None:
    async with asyncio.timeout(_REST_SECONDS_MAX):
        while min(*(one.last for one in readers), max(bare.arrived, default=0)) < last:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_SECONDS)


def _late_ms(recorded: Mapping[int, float], arrived: Mapping[int, float]) -> list[float]:
    return [1000 * (arrived[position] - recorded[position]) for position in arrived]


async def _run(place: Place) -> Run:
    seconds = _SECONDS_QUICK if place.quick else _SECONDS
    home = await place.home()
    token = await place.apart(admin_token, home)
    replicas = [
        ServedGateway.start(home, token=token, name=f"serve-{number}")
        for number in range(_REPLICAS)
    ]
    readers = [Reader(urls=[replica.url], token=token) for replica in replicas]
    bare = _BareReader(home)
    control = asyncio.ensure_future(bare.read())
    try:
        for replica in replicas:
            async with httpx2.AsyncClient(base_url=replica.url, trust_env=False) as http:
                await replica.answers(http, seconds_max=_START_SECONDS_MAX)
        async with reading(readers):
            used = sum(process_seconds(replica.process.pid) for replica in replicas)
            await place.apart(write, home.url, seconds, 1)
            recorded = await _recorded(home)
            await _all_read(readers, bare, max(recorded))
            used = sum(process_seconds(replica.process.pid) for replica in replicas) - used
    finally:
        control.cancel()
        for replica in replicas:
            replica.end()
    await place.drop(home)
    late = [
        one
        for reader in readers
        for one in _late_ms(recorded, {position: at for position, _, at in reader.events})
    ]
    bare_late = _late_ms(recorded, bare.arrived)
    return {
        "writers": WRITERS,
        "events": len(recorded),
        "p50_ms": percentile(late, 50),
        "p99_ms": percentile(late, 99),
        "max_ms": max(late),
        "wrong": sum(len(reader.problems) for reader in readers)
        + sum(abs(len(reader.events) - len(recorded)) for reader in readers),
        "control_p50_ms": percentile(bare_late, 50),
        "control_p99_ms": percentile(bare_late, 99),
        "p50_ratio": percentile(late, 50) / percentile(bare_late, 50),
        "process_cpu_us": 1e6 * used / len(late),
    }


FEED = Benchmark(
    name="feed",
    about="events of 16 writers on their way to the readers of `/v1/events` at two replicas",
    figures={
        "writers": Figure(label="writers"),
        "events": Figure(label="events"),
        "p50_ms": Figure(label="from the log to a reader, p50", unit="ms", at_most=5),
        "p99_ms": Figure(label="from the log to a reader, p99", unit="ms"),
        "max_ms": Figure(label="from the log to a reader, the slowest", unit="ms", worst=True),
        "wrong": Figure(label="lost, doubled or out of order", at_most=0, worst=True),
        "control_p50_ms": Figure(label="control: a connection that listens, p50", unit="ms"),
        "control_p99_ms": Figure(label="control: a connection that listens, p99", unit="ms"),
        "p50_ratio": Figure(label="p50 to the control's", unit="times"),
        "process_cpu_us": Figure(
            label="the gateway's processor time an event and reader", unit="µs"
        ),
    },
    run=_run,
)
