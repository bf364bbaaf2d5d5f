"""`kill -9` at random moments over three replicas under load, and what is left of it.

    python -m tests.fault.kills --count 100 --seed 7 --json PATH

Callers fetch packs that live for a second or two through one address, some shared, some their own.
At random moments a random replica is killed and started anew; the two others must reap what it had
claimed. At the end everything has to be gone, recorded once, and never long overdue.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from gateway.service import Service
from leases.clock import SystemClock
from tests.fault.balancer import balanced
from tests.fault.command import own_gateways, run_command
from tests.fault.load import HALF_SHARED, under_load
from tests.fault.processes import GatewayProcess, Gateways
from tests.fault.scene import (
    a_pushed_repo,
    all_are_gone,
    durable_blobs,
    inside,
    states,
    sweep_once_and_check,
)
from tests.integration.gateways import free_port
from tests.leasing import until

REPLICAS = 3
OVERDUE_SECONDS_MAX = 3.0  # A second for the promise, two until a dead process is known dead.
_PAUSE_SECONDS = (0.05, 0.6)
_REST_SECONDS_MAX = 30.0
_FOUND = """
SELECT coalesce(max(lateness_ms), 0) AS late_ms_max,
       count(*) FILTER (WHERE lateness_ms > $1) AS late,
       (SELECT count(*) FROM (
            SELECT stream FROM events WHERE type = 'lease.reclaimed'
            GROUP BY stream HAVING count(*) > 1) AS twice) AS doubled
FROM mpack_leases"""


@dataclass(slots=True, kw_only=True)
class Kills:
    """What a run did and found; all of it has to be 0 but the counts of work."""

    seed: int
    kills: int = 0
    fetches: int = 0
    refused: int = 0
    leases: int = 0
    leaked_blobs: int = 0
    second_reclaims: int = 0
    overdue_ms_max: int = 0
    overdue_over_bound: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether the promise was kept."""
        bad = self.leaked_blobs or self.second_reclaims or self.overdue_over_bound
        return not (bad or self.problems)


async def run(gateways: Gateways, *, count: int, seed: int, minutes_max: float) -> Kills:
    """The whole run on these gateways; fewer kills when the time is up before."""
    told, chance, clock = Kills(seed=seed), random.Random(seed), SystemClock()
    began = clock.monotonic()
    async with inside(gateways) as service:
        pushed = await a_pushed_repo(service)
        durable = await durable_blobs(service)
    ports = [free_port() for _ in range(REPLICAS)]
    async with balanced(ports) as url:
        # A claim limit that is no way out.
        settings: dict[str, Any] = {"public_url": url, "claim_limit_seconds": 30, **HALF_SHARED}
        started = await asyncio.gather(*(gateways.start(port=port, **settings) for port in ports))
        replicas = dict(zip(ports, started, strict=True))
        async with under_load(url, pushed, chance) as load:
            while told.kills < count and clock.monotonic() - began < minutes_max * 60:
                await clock.sleep(chance.uniform(*_PAUSE_SECONDS))
                port = chance.choice(ports)
                await _kill(gateways, replicas, port, settings)
                told.kills += 1
        told.fetches, told.refused = load.fetches, load.refused
        with suppress(TimeoutError):
            await until(lambda: all_are_gone(gateways), _REST_SECONDS_MAX)
        for replica in replicas.values():
            await asyncio.to_thread(replica.terminate)
    async with inside(gateways) as service:
        await _judge(service, gateways, told, durable)
    told.seconds = round(clock.monotonic() - began, 1)
    return told


async def _kill(
    gateways: Gateways, replicas: dict[int, GatewayProcess], port: int, settings: dict[str, Any]
) -> None:
    await asyncio.to_thread(replicas[port].kill)
    gateways.processes.remove(replicas[port])
    replicas[port] = await gateways.start(port=port, **settings)


async def _judge(
    service: Service, gateways: Gateways, told: Kills, durable: dict[str, str]
) -> None:
    told.leaked_blobs = len(gateways.view.packs())
    try:
        await sweep_once_and_check(service, durable=durable)
    except AssertionError as error:
        told.problems.append(str(error))
    told.leases = sum((await states(service)).values())
    bound_ms = int(OVERDUE_SECONDS_MAX * 1000)
    row = await service.database.row(_FOUND, bound_ms)
    told.second_reclaims = row["doubled"]
    told.overdue_ms_max = row["late_ms_max"]
    told.overdue_over_bound = row["late"]


async def _run(asked: argparse.Namespace) -> Kills:
    async with own_gateways() as gateways:
        return await run(
            gateways, count=asked.count, seed=asked.seed, minutes_max=asked.minutes_max
        )


def main() -> int:
    """The command; 1 when the promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.fault.kills")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--minutes-max", type=float, default=180.0, help="then judge anyway")
    return run_command(parser, _run)


if __name__ == "__main__":
    sys.exit(main())
