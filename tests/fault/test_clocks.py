"""A wall clock that is wrong, or jumps: TTL and URL hold, for the database's clock decides.

The clock of our code and the one that APScheduler reads are wrong alike, in this very process: the
gateway serves from the test's own loop. The database's clock is right.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import httpx2
import pytest

from leases.clock import SystemClock
from tests.fault.scene import REPO, a_pushed_repo
from tests.fault.wall_clock import WallClock
from tests.fault.watching import DatabaseTime
from tests.integration.gateways import LiveGateway, serving, settings_for
from tests.invariants import check_invariants
from tests.leasing import until

HOUR = timedelta(hours=1)
TTL_SECONDS = 2
# A URL dies by whole seconds, rounded up.
DEAD_WITHIN = timedelta(seconds=2)
LOOK_AGAIN_SECONDS = 0.05


@pytest.fixture
def wall_clock(monkeypatch: pytest.MonkeyPatch) -> WallClock:
    clock = WallClock()
    clock.mislead(monkeypatch)
    return clock


@pytest.mark.parametrize("jumps", [False, True], ids=["from the start", "in between"])
@pytest.mark.parametrize("shift", [HOUR, -HOUR], ids=["fast", "slow"])
async def test_a_wrong_wall_clock_moves_no_deadline(
    wall_clock: WallClock, database_url: str, tmp_path: Path, shift: timedelta, jumps: bool
) -> None:
    if not jumps:
        wall_clock.shift = shift
    async with serving(settings_for(database_url, tmp_path / "blobs")) as gateway:
        pushed = await a_pushed_repo(gateway.service)
        body = {"want": [pushed.history.head.commit_id], "have": [], "ttl_seconds": TTL_SECONDS}
        answer = await gateway.call("POST", f"/{REPO}/fetch/mpack", body)
        assert answer.status == 200
        wall_clock.shift = shift
        time = await DatabaseTime.read(gateway.service.database)
        expires_at = datetime.fromisoformat(answer.body["expires_at"])
        assert timedelta() < expires_at - time.now <= timedelta(seconds=TTL_SECONDS)
        await check_url(gateway.http, answer.body["mpack_url"], expires_at, time)
        await until(lambda: all_on_time(gateway))
        service = gateway.service
        assert abs(service.engine.database_clock.skew_seconds - shift.total_seconds()) < 1
        await check_invariants(service.database, service.store)


async def check_url(
    http: httpx2.AsyncClient, url: str, expires_at: datetime, time: DatabaseTime
) -> None:
    """It works until `expires_at`, and soon after that never again."""
    clock = SystemClock()
    worked = 0
    while True:
        sent_at = clock.monotonic()
        status = (await http.get(url)).status_code
        if status != 200:
            break
        assert time.earliest(sent_at) < expires_at + DEAD_WITHIN
        worked += 1
        await clock.sleep(LOOK_AGAIN_SECONDS)
    assert time.latest(clock.monotonic()) >= expires_at
    assert status in (403, 404)
    assert worked > 3


async def all_on_time(gateway: LiveGateway) -> bool:
    rows = await gateway.service.database.fetch("SELECT state, lateness_ms FROM mpack_leases")
    assert all(row["lateness_ms"] < 1000 for row in rows if row["state"] == "reclaimed")
    return [row["state"] for row in rows] == ["reclaimed"]
