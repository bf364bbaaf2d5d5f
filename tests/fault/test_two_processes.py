"""Two gateways on one store: whoever dies or freezes, every lease goes on time, and once."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from gateway.service import Service
from leases.clock import SystemClock
from leases.steps import Step
from tests.fault.processes import GatewayProcess, Gateways
from tests.fault.scene import (
    a_pushed_repo,
    all_are_gone,
    all_are_reclaimed,
    claims_are_held,
    fetch,
    grant_together,
    inside,
    sweep_once_and_check,
    transient_blobs,
)
from tests.fault.watching import BlobWatch, DatabaseTime
from tests.leasing import until
from tests.stores import ON_S3

MANY = 1000
FEW = 200
# The promise is one second; the watch from outside sees a deletion a little after it.
# (A thousand deletions take an S3 server on the same two cores longer; that is measured elsewhere.)
LATE_MS_MAX = 5000 if ON_S3 else 1000
LATE_SECONDS_MAX = LATE_MS_MAX / 1000 + 0.1
# Opening a service on S3, and a first look at a full bucket, take longer.
_MORE_SECONDS = 3 if ON_S3 else 0
# So that nothing here can be the limit of a claim that ran out.
LONG_CLAIMS: dict[str, Any] = {"claim_limit_seconds": 30}


async def two(gateways: Gateways, **settings: Any) -> tuple[GatewayProcess, GatewayProcess]:
    return await asyncio.gather(gateways.start(**settings), gateways.start(**settings))


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """Leases that are due together, and a watch over their blobs."""

    keys: list[str]
    at: datetime
    time: DatabaseTime
    watch: BlobWatch

    async def passes(self) -> None:
        """Wait until the deadline has passed while nobody is there."""
        await SystemClock().sleep((self.at - self.time.now).total_seconds())

    async def check(self, service: Service, *, late_seconds_max: float = LATE_SECONDS_MAX) -> None:
        """All were reclaimed, once, by the store's word and by the log's."""
        await until(lambda: all_are_reclaimed(service, len(self.keys)))
        self.watch.check_in_time(self.keys, self.at, self.time, late_seconds_max=late_seconds_max)
        row = await service.database.fetchrow(
            "SELECT count(*) AS events, count(DISTINCT stream) AS streams FROM events"
            " WHERE type = 'lease.reclaimed'"
        )
        assert dict(row or {}) == {"events": len(self.keys), "streams": len(self.keys)}
        await sweep_once_and_check(service)


async def due_together(gateways: Gateways, count: int, *, due_in_seconds: float) -> Due:
    """Grant them, and leave: nothing of the granting process stays."""
    async with inside(gateways) as service:
        due_in_seconds += _MORE_SECONDS
        keys, at = await grant_together(service, count, due_in_seconds=due_in_seconds)
        return Due(
            keys=keys,
            at=at,
            time=await DatabaseTime.read(service.database),
            watch=BlobWatch(gateways.view),
        )


async def lateness_ms_max(service: Service) -> int:
    row = await service.database.row("SELECT max(lateness_ms) AS late FROM mpack_leases")
    late: int = row["late"]
    return late


async def test_a_thousand_due_together_go_on_time_and_once(gateways: Gateways) -> None:
    await two(gateways)
    due = await due_together(gateways, MANY, due_in_seconds=2)
    with due.watch:
        await until(lambda: all_are_gone(gateways))
    async with inside(gateways) as service:
        await due.check(service)
        assert await lateness_ms_max(service) < LATE_MS_MAX


async def test_leases_of_a_process_killed_before_their_deadline_go_on_time(
    gateways: Gateways,
) -> None:
    async with inside(gateways) as service:
        pushed = await a_pushed_repo(service)
    doomed, _other = await two(gateways)
    for _ in range(20):
        await fetch(doomed, pushed, ttl_seconds=3, share=False)
    doomed.kill()
    assert len(transient_blobs(gateways)) == 20, "some were due too early for this test"
    await until(lambda: all_are_gone(gateways))
    async with inside(gateways) as service:
        await until(lambda: all_are_reclaimed(service, 20))
        assert await lateness_ms_max(service) < LATE_MS_MAX
        await sweep_once_and_check(service)


async def test_claims_of_a_killed_process_are_free_at_once(gateways: Gateways) -> None:
    doomed, other = await asyncio.gather(
        gateways.start_serving(Step.LEASES_CLAIMED, **LONG_CLAIMS), gateways.start(**LONG_CLAIMS)
    )
    due = await due_together(gateways, FEW, due_in_seconds=1.5)
    other.freeze()
    with due.watch:
        assert await doomed.died() == -signal.SIGKILL
        killed_at = SystemClock().monotonic()
        other.thaw()
        await until(lambda: all_are_gone(gateways))
        assert SystemClock().monotonic() - killed_at < 3
    async with inside(gateways) as service:
        await due.check(service, late_seconds_max=4)
    assert other.said("dead_claims_freed")


async def test_claims_of_a_frozen_process_end_at_their_limit(gateways: Gateways) -> None:
    """Its connections live on, so only time can tell; thawed, it finds that others were faster."""
    frozen, other = await two(gateways)
    due = await due_together(gateways, 2 * MANY, due_in_seconds=2)
    other.freeze()
    async with inside(gateways) as service:
        with due.watch:
            await until(lambda: claims_are_held(service))
            frozen.freeze()
            assert await claims_are_held(service), "it was too quick to be caught"
            other.thaw()
            await until(lambda: all_are_reclaimed(service, 2 * MANY))
            frozen.thaw()
            await until(frozen.is_ready)
        await due.check(service, late_seconds_max=4 + LATE_SECONDS_MAX)
        assert other.said("leases_reclaimed")


async def test_both_killed_the_next_start_reclaims_and_says_how_late(gateways: Gateways) -> None:
    for gateway in await two(gateways):
        gateway.kill()
    due = await due_together(gateways, FEW, due_in_seconds=0.2)
    await due.passes()
    with due.watch:
        started = await gateways.start()
        await until(lambda: all_are_gone(gateways))
    async with inside(gateways) as service:
        await due.check(service, late_seconds_max=10)
        late = await lateness_ms_max(service)
        told = started.said("leases_reclaimed")
        assert sum(line["leases"] for line in told) == FEW
        assert max(line["lateness_ms_max"] for line in told) == late
        row = await service.database.row("SELECT min(reclaimed_at) AS first FROM mpack_leases")
        assert timedelta(milliseconds=late) >= row["first"] - due.at - timedelta(milliseconds=1)
    await until(lambda: has_said(started, "start_up_sweep"))


async def has_said(gateway: GatewayProcess, event: str) -> bool:
    return bool(gateway.said(event))
