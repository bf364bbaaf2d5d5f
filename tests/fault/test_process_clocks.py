"""Three replicas whose wall clocks differ by half an hour, under load: no deadline moves.

The database's clock decides. A replica's own clock dates nothing that a client or another replica
sees, and arms nothing but its own timer.
"""

from __future__ import annotations

import asyncio
import random
from datetime import datetime, timedelta

import pytest

from gateway.service import Service
from tests.fault.balancer import balanced
from tests.fault.load import CALLERS, HALF_SHARED, under_load
from tests.fault.processes import GatewayProcess, Gateways
from tests.fault.scene import (
    Pushed,
    a_pushed_repo,
    all_are_gone,
    deadlines,
    durable_blobs,
    fetch,
    inside,
    sweep_once_and_check,
)
from tests.fault.test_clocks import check_url
from tests.fault.test_two_processes import lateness_ms_max
from tests.fault.watching import BlobWatch, DatabaseTime
from tests.integration.gateways import free_port
from tests.leasing import until
from tests.stores import ON_S3

# An S3 server takes no request that is dated a quarter of an hour or more beside its own clock.
SHIFT = timedelta(minutes=14 if ON_S3 else 15)
SHIFTS = (SHIFT, -SHIFT, timedelta())
FETCHES = 10 * CALLERS
# Under load an answer takes long; a URL is to be looked at several times before its end.
TTL_SECONDS = 6
# Far below the shift, and far above what a busy machine adds.
OVERDUE_MS_MAX = 15_000


@pytest.mark.timeout(180)
async def test_replicas_whose_clocks_differ_keep_every_deadline(gateways: Gateways) -> None:
    async with inside(gateways) as service:
        pushed = await a_pushed_repo(service)
        durable = await durable_blobs(service)
        ports = [free_port() for _ in SHIFTS]
        starts = [
            gateways.start(port=port, clock_shift=shift, **HALF_SHARED)
            for port, shift in zip(ports, SHIFTS, strict=True)
        ]
        replicas = await asyncio.gather(*starts)
        time = await DatabaseTime.read(service.database)
        with BlobWatch(gateways.view) as watch:
            async with balanced(ports) as url, under_load(url, pushed, random.Random(7)) as load:
                await asyncio.gather(*(check_own_pack(one, pushed, time) for one in replicas))

                async def enough() -> bool:
                    return load.fetches >= FETCHES

                await until(enough, 60)
            await until(lambda: all_are_gone(gateways))
        assert load.refused == 0
        for replica, shift in zip(replicas, SHIFTS, strict=True):
            await check_skew(replica, shift)
            await asyncio.to_thread(replica.terminate)
        assert watch.early(await deadlines(service), time) == []
        assert await lateness_ms_max(service) < OVERDUE_MS_MAX
        assert await who_reclaimed(service) == len(SHIFTS)
        await sweep_once_and_check(service, durable=durable)


async def check_own_pack(replica: GatewayProcess, pushed: Pushed, time: DatabaseTime) -> None:
    """Its URL works until the end that was told, by the database's clock, and not much longer."""
    answer = await fetch(replica, pushed, ttl_seconds=TTL_SECONDS, share=False)
    expires_at = datetime.fromisoformat(answer["expires_at"])
    await check_url(replica.http, answer["mpack_url"], expires_at, time)


async def check_skew(replica: GatewayProcess, shift: timedelta) -> None:
    """It knows how wrong it is."""
    told = (await replica.call("GET", "/readyz")).body["checks"]["clock"]
    assert abs(told["skew_seconds"] - shift.total_seconds()) < 1


async def who_reclaimed(service: Service) -> int:
    """How many replicas took part in it."""
    row = await service.database.fetchrow(
        "SELECT count(DISTINCT data::jsonb ->> 'replica') AS replicas FROM events"
        " WHERE type = 'lease.reclaimed'"
    )
    assert row is not None
    count: int = row["replicas"]
    return count
