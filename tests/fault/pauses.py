"""A replica that is stopped while it holds claims, and wakes when others have done its work.

    python -m tests.fault.pauses --seconds 300 --claim-limit 30 --seed 7 --json PATH

It gets SIGSTOP: its connections stay open, so that nobody can tell that it is not at work, and its
claims stand until their limit. Then the others reap what it held, and serve for as long as the
pause lasts. It wakes in the middle of deletions that others have made and recorded long ago.
Whatever it makes of that, nothing may go early, and nothing may be recorded twice.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from gateway.service import Service
from leases.clock import SystemClock
from tests.fault.balancer import balanced
from tests.fault.command import own_gateways, run_command
from tests.fault.load import CALLERS, HALF_SHARED, under_load
from tests.fault.processes import GatewayProcess, Gateways
from tests.fault.scene import (
    Pushed,
    a_pushed_repo,
    all_are_gone,
    claims_are_held,
    deadlines,
    durable_blobs,
    grant_together,
    inside,
    states,
    sweep_once_and_check,
)
from tests.fault.watching import BlobWatch, DatabaseTime
from tests.integration.gateways import free_port
from tests.leasing import until

REPLICAS = 3
LEASES = 2000  # So many that nobody is through with them before it can be stopped.
_DUE_IN_SECONDS = 3.0
_REST_SECONDS_MAX = 60.0
_CLAIMED = """
SELECT mpack_id, claimed_by, claimed_until FROM mpack_leases WHERE claim_token IS NOT NULL"""
# Statements that a stopped process had sent are carried out all the same; but who has got a part of
# one, or answers with more than the process has room for, waits until it wakes.
_AT_WORK = """
SELECT count(*) AS sessions FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND state = 'active'
  AND backend_type = 'client backend'
  AND coalesce(wait_event, '') NOT IN ('ClientRead', 'ClientWrite')"""
_RECLAIMED_OF = """
SELECT count(*) AS leases FROM mpack_leases WHERE state = 'reclaimed' AND mpack_id = ANY ($1)"""
_RECORDED = """
SELECT substr(stream, 7) AS mpack_id, recorded_at, data::jsonb ->> 'replica' AS replica
FROM events WHERE type = 'lease.reclaimed'"""


@dataclass(slots=True, kw_only=True)
class Pause:
    """What a run did and found; what stands below `held` has to be 0, but for the seconds."""

    seed: int
    claim_limit_seconds: float
    paused_seconds: float = 0.0
    leases: int = 0
    fetches: int = 0
    refused: int = 0
    fetches_after: int = 0
    held: int = 0
    taken_before_limit: int = 0
    recorded_by_the_stopped: int = 0
    early_deletes: int = 0
    second_reclaims: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether the promise was kept."""
        wrong = self.taken_before_limit or self.recorded_by_the_stopped
        return not (wrong or self.early_deletes or self.second_reclaims or self.problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """The claims of the one that was stopped, and until when they stand."""

    by: str
    until: Mapping[str, datetime]
    stopped_at: float


async def run(
    gateways: Gateways, *, seconds: float, claim_limit_seconds: float, seed: int
) -> Pause:
    """The whole run on these gateways. The pause lasts so long, and at least until the others have
    reaped what was held.
    """
    told = Pause(seed=seed, claim_limit_seconds=claim_limit_seconds)
    clock, chance = SystemClock(), random.Random(seed)
    began = clock.monotonic()
    limits: dict[str, Any] = {
        "claim_limit_seconds": claim_limit_seconds,
        "delete_timeout_seconds": claim_limit_seconds / 2,
        **HALF_SHARED,
    }
    ports = [free_port() for _ in range(REPLICAS)]
    async with inside(gateways) as service, balanced(ports[1:]) as others:
        pushed = await a_pushed_repo(service)
        durable = await durable_blobs(service)
        replicas = await asyncio.gather(*(gateways.start(port=port, **limits) for port in ports))
        time = await DatabaseTime.read(service.database)
        with BlobWatch(gateways.view) as watch:
            held = await _stopped_with_claims(service, replicas)
            async with under_load(others, pushed, chance) as load:
                await _paused(service, told, held, seconds=seconds)
                replicas[0].thaw()
                told.paused_seconds = round(clock.monotonic() - held.stopped_at, 1)
                told.fetches_after = await _serves_again(replicas[0], pushed, chance)
            told.fetches, told.refused = load.fetches, load.refused
            await until(lambda: all_are_gone(gateways), _REST_SECONDS_MAX)
        for replica in replicas:
            await asyncio.to_thread(replica.terminate)
        await _judge(service, told, held, durable)
        told.early_deletes = len(watch.early(await deadlines(service), time))
    told.seconds = round(clock.monotonic() - began, 1)
    return told


async def _stopped_with_claims(service: Service, replicas: Sequence[GatewayProcess]) -> _Held:
    """Stop the first replica while it reaps; the others are away until it has been."""
    claimer, *others = replicas
    for other in others:
        other.freeze()
    await grant_together(service, LEASES, due_in_seconds=_DUE_IN_SECONDS)
    await until(lambda: claims_are_held(service))
    claimer.freeze()
    stopped_at = SystemClock().monotonic()

    async def nobody_is_at_work() -> bool:
        row = await service.database.fetchrow(_AT_WORK)
        return row is not None and row["sessions"] == 0

    await until(nobody_is_at_work)
    rows = await service.database.fetch(_CLAIMED)
    assert rows, "it was too quick to be caught"
    for other in others:
        other.thaw()
    (by,) = {row["claimed_by"] for row in rows}
    limits = {row["mpack_id"]: row["claimed_until"] for row in rows}
    return _Held(by=by, until=limits, stopped_at=stopped_at)


async def _paused(service: Service, told: Pause, held: _Held, *, seconds: float) -> None:
    """Until the others have reaped what was held, and the pause has been long enough."""
    told.held = len(held.until)

    async def all_are_reclaimed() -> bool:
        row = await service.database.fetchrow(_RECLAIMED_OF, list(held.until))
        return row is not None and row["leases"] == told.held

    await until(all_are_reclaimed, told.claim_limit_seconds + _REST_SECONDS_MAX)
    clock = SystemClock()
    await clock.sleep(max(0.0, held.stopped_at + seconds - clock.monotonic()))


async def _serves_again(replica: GatewayProcess, pushed: Pushed, chance: random.Random) -> int:
    """It is ready and answers fetches, as if nothing had been; how many."""
    await until(replica.is_ready, _REST_SECONDS_MAX)
    async with under_load(replica.url, pushed, chance) as load:

        async def has_fetched() -> bool:
            return load.fetches >= 2 * CALLERS

        await until(has_fetched, _REST_SECONDS_MAX)
    return load.fetches


async def _judge(service: Service, told: Pause, held: _Held, durable: dict[str, str]) -> None:
    try:
        await sweep_once_and_check(service, durable=durable)
    except AssertionError as error:
        told.problems.append(str(error))
    told.leases = sum((await states(service)).values())
    rows = await service.database.fetch(_RECORDED)
    told.second_reclaims = len(rows) - len({row["mpack_id"] for row in rows})
    for row in rows:
        if row["mpack_id"] in held.until:
            told.taken_before_limit += row["recorded_at"] < held.until[row["mpack_id"]]
            told.recorded_by_the_stopped += row["replica"] == held.by


async def _run(asked: argparse.Namespace) -> Pause:
    async with own_gateways() as gateways:
        return await run(
            gateways,
            seconds=asked.seconds,
            claim_limit_seconds=asked.claim_limit,
            seed=asked.seed,
        )


def main() -> int:
    """The command; 1 when the promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.fault.pauses")
    parser.add_argument("--seconds", type=float, default=300.0, help="how long it is stopped")
    parser.add_argument("--claim-limit", type=float, default=30.0, help="seconds; the default's")
    return run_command(parser, _run)


if __name__ == "__main__":
    sys.exit(main())
