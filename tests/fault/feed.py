"""The feed under fire: sixteen writers, and readers at three replicas, of which nobody is safe.

    python -m tests.fault.feed --minutes 10 --seed 7 --json PATH

At random moments a replica or the writers are killed with -9 and started anew, or the database ends
the connections on which the replicas hear of new events. Each reader must have seen every position
once and in order, each with the event that stands there.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import asyncpg

from gateway.auth import Scope
from leases.clock import SystemClock
from leases.instance import LOCK_CLASS
from tests.databases import driver_url
from tests.fault.command import own_gateways, run_command
from tests.fault.feeding import Reader, WritersProcess, reading
from tests.fault.processes import GatewayProcess, Gateways
from tests.fault.scene import inside
from tests.integration.gateways import free_port
from tests.leasing import until

REPLICAS = 3
# With a replica back after three seconds two of three are there most of the time.
_PAUSE_SECONDS = (1.0, 5.0)
_REST_SECONDS_MAX = 60.0
# Only the connections that listen hold such a lock.
_CUT = f"""
SELECT count(pg_terminate_backend(pid)) FROM pg_locks
WHERE locktype = 'advisory' AND classid = {LOCK_CLASS}
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
_EVENTS = """
SELECT position, event_id::text AS event_id, extract(epoch FROM recorded_at)::float8 AS recorded_at
FROM events ORDER BY position"""


@dataclass(slots=True, kw_only=True)
class Feed:
    """What a run did and found; latency counts from the place in the log to the reader, in ms."""

    seed: int
    events: int = 0
    readers: int = REPLICAS
    streams: int = 0
    replicas_killed: int = 0
    writers_killed: int = 0
    listeners_cut: int = 0
    lost: int = 0
    doubled: int = 0
    out_of_order: int = 0
    latency_ms_p50: float = 0.0
    latency_ms_p99: float = 0.0
    latency_ms_max: float = 0.0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether every reader saw what there was."""
        return not (self.lost or self.doubled or self.out_of_order or self.problems)


@dataclass(slots=True, kw_only=True)
class _Fire:
    """What is done to those who take part."""

    gateways: Gateways
    replicas: dict[int, GatewayProcess]
    writers: WritersProcess
    chance: random.Random
    until: float
    told: Feed

    async def burn(self) -> None:
        """One thing after the other, until the time is up; then the writers come to their end."""
        clock = SystemClock()
        acts = [self._kill_a_replica, self._cut_listeners, self._kill_writers]
        while clock.monotonic() < self.until:
            for act in self.chance.sample(acts, len(acts)):
                await clock.sleep(self.chance.uniform(*_PAUSE_SECONDS))
                await act()
        await self.writers.ended()

    async def _kill_a_replica(self) -> None:
        port = self.chance.choice(list(self.replicas))
        old = self.replicas[port]
        await asyncio.to_thread(old.kill)
        self.gateways.processes.remove(old)
        self.told.replicas_killed += 1
        self.replicas[port] = await self.gateways.start(port=port)

    async def _cut_listeners(self) -> None:
        connection = await asyncpg.connect(driver_url(self.gateways.database_url))
        try:
            self.told.listeners_cut += await connection.fetchval(_CUT)
        finally:
            await connection.close()

    async def _kill_writers(self) -> None:
        left = self.until - SystemClock().monotonic()
        if left > 0:
            self.writers.kill()
            self.told.writers_killed += 1
            seed = self.told.seed + self.told.writers_killed
            self.writers = WritersProcess(self.gateways.database_url, left, seed)


async def run(gateways: Gateways, *, seconds: float, seed: int) -> Feed:
    """The whole run on these gateways."""
    told, chance, clock = Feed(seed=seed), random.Random(seed), SystemClock()
    began = clock.monotonic()
    async with inside(gateways) as service:
        token = (await service.tokens.create(name="reader", scopes=[Scope.ADMIN])).secret
    ports = [free_port() for _ in range(REPLICAS)]
    started = await asyncio.gather(*(gateways.start(port=port) for port in ports))
    urls = [replica.url for replica in started]
    readers = [
        Reader(urls=urls[number:] + urls[:number], token=token) for number in range(told.readers)
    ]
    async with reading(readers):
        fire = _Fire(
            gateways=gateways,
            replicas=dict(zip(ports, started, strict=True)),
            writers=WritersProcess(gateways.database_url, seconds, seed),
            chance=chance,
            until=clock.monotonic() + seconds,
            told=told,
        )
        try:
            await fire.burn()
            rows = await _all_read(gateways, readers)
        finally:
            fire.writers.kill()
    judge(told, readers, rows)
    told.seconds = round(clock.monotonic() - began, 1)
    return told


async def _all_read(gateways: Gateways, readers: Sequence[Reader]) -> list[Any]:
    """Wait until every reader is at the end of the log; the whole log."""
    async with inside(gateways) as service:
        rows = await service.database.fetch(_EVENTS)

        async def at_the_end() -> bool:
            return all(reader.last >= len(rows) for reader in readers)

        await until(at_the_end, _REST_SECONDS_MAX)
    return list(rows)


def judge(told: Feed, readers: Sequence[Reader], rows: Sequence[Any]) -> None:
    """Compare what each reader saw with what there is."""
    there = {row["position"]: row for row in rows}
    late_ms = []
    for reader in readers:
        seen = [event for event in reader.events if event[0] <= len(rows)]
        told.streams += reader.streams
        told.lost += len(there.keys() - {position for position, _, _ in seen})
        told.doubled += len(seen) - len({position for position, _, _ in seen})
        told.out_of_order += len(reader.problems)
        told.problems += reader.problems[:5]
        for position, event_id, arrived in seen:
            if there[position]["event_id"] != event_id:
                told.problems.append(f"another event at {position}")
            late_ms.append(1000 * (arrived - there[position]["recorded_at"]))
    late_ms.sort()
    told.events = len(rows)
    told.latency_ms_p50 = round(late_ms[ceil(len(late_ms) / 2) - 1], 3)
    told.latency_ms_p99 = round(late_ms[ceil(len(late_ms) * 0.99) - 1], 3)
    told.latency_ms_max = round(late_ms[-1], 3)


async def _run(asked: argparse.Namespace) -> Feed:
    async with own_gateways() as gateways:
        return await run(gateways, seconds=asked.minutes * 60, seed=asked.seed)


def main() -> int:
    """The command; 1 when a reader saw anything but the log."""
    parser = argparse.ArgumentParser(prog="python -m tests.fault.feed")
    parser.add_argument("--minutes", type=float, default=10.0)
    return run_command(parser, _run)


if __name__ == "__main__":
    sys.exit(main())
