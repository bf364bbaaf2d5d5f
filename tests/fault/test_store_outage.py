"""The store is out with many leases due, under load: nothing stuck, no storm, back in seconds.

The same as `python -m benchmarks outage`, smaller, and with everything that must hold asserted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from gateway.storage.availability import Need
from leases.clock import SystemClock
from leases.policy import LeasePolicy
from tests.factories import make_history
from tests.fault.s3_faults import Held, reset_before, slow_down
from tests.integration.gateways import Answer, LiveGateway, serving, settings_for
from tests.invariants import check_invariants
from tests.leasing import granted_many, until, until_reclaimed
from tests.rgw import new_bucket, s3_settings, server
from tests.s3_proxy import Fault, S3Proxy, s3_proxied

REPO = "ada/demo"
LEASES = 200
# A tenth of the pauses and limits: ten seconds of recovery become one.
SCALED = LeasePolicy(
    circuit_pause_seconds=0.1,
    circuit_pause_seconds_max=0.5,
    circuit_probe_seconds=0.3,
    delete_timeout_seconds=1,
    retry_first_seconds=0.1,
    look_ahead_seconds=0.05,
)
BACK_SECONDS_MAX = 1.0
LIFE_SECONDS = 2.0
PACE_SECONDS = 0.1


@dataclass(slots=True)
class Asked:
    """One fetch of the load, by the loop's clock."""

    began: float
    ended: float
    answer: Answer


@asynccontextmanager
async def fetching(gateway: LiveGateway, want: str) -> AsyncIterator[list[Asked]]:
    """A new pack asked for ten times a second, for the time of the block."""
    loop, asked = asyncio.get_running_loop(), list[Asked]()

    async def fetch() -> None:
        began = loop.time()
        body = {"want": [want], "have": [], "share": False, "ttl_seconds": 2}
        answer = await gateway.call("POST", f"/{REPO}/fetch/mpack", body)
        asked.append(Asked(began, loop.time(), answer))

    async def pace(requests: asyncio.TaskGroup) -> None:
        while True:
            requests.create_task(fetch())
            await SystemClock().sleep(PACE_SECONDS)

    async with asyncio.TaskGroup() as requests:
        pacing = asyncio.ensure_future(pace(requests))
        try:
            yield asked
        finally:
            pacing.cancel()


@pytest.mark.parametrize(
    "fault", [slow_down, reset_before, Held()], ids=["slow down", "resets", "frozen"]
)
async def test_an_outage_is_got_over(database_url: str, tmp_path: Path, fault: Fault) -> None:
    s3 = s3_settings(new_bucket())
    async with s3_proxied(server().endpoint) as proxy:
        settings = replace(
            settings_for(database_url, tmp_path, lease=SCALED),
            s3=replace(s3, s3_endpoint=proxy.url, s3_public_endpoint=server().endpoint),
        )
        async with serving(settings) as gateway:
            await _outage(gateway, proxy, fault)


async def _outage(gateway: LiveGateway, proxy: S3Proxy, fault: Fault) -> None:
    service, loop = gateway.service, asyncio.get_running_loop()
    engine, availability = service.engine, service.availability
    await engine.owner.check()
    history = make_history(1, commits=3)
    token = await gateway.token("push")
    assert (await gateway.push(REPO, history, token=token)).status == 200
    leases = await granted_many(engine, LEASES, ttl_seconds=LIFE_SECONDS)
    async with fetching(gateway, history.head.commit_id) as asked:
        normal = await _requests_in(proxy, seconds=1)
        proxy.fault = fault

        async def is_known() -> bool:
            return engine.reaper.circuit.is_open and all(map(availability.is_out, Need))

        await until(is_known)
        known_at = loop.time()
        reserved = await _reserved(gateway)
        out = await _requests_in(proxy, seconds=2)
        assert out <= 2 * 2 * normal, "no storm"
        more = {"objects": make_history(2, commits=2).objects()}
        push = await gateway.call("POST", f"/{REPO}/push/objects", more, token=token)
        assert (push.status, push.body["code"]) == (503, "store_unavailable")
        assert "Retry-After" in push.headers
        assert await _reserved(gateway) == reserved
        proxy.fault = None
        if isinstance(fault, Held):
            fault.release()
        healed_at = loop.time()

        async def is_back() -> bool:
            return any(one.answer.status == 200 and one.began > healed_at for one in asked)

        await until(is_back)
        back = min(one.ended for one in asked if one.answer.status == 200 and one.began > known_at)
        found = await until_reclaimed(engine, *leases)
    refused = [one for one in asked if known_at < one.began and one.ended < healed_at]
    assert refused
    assert {one.answer.status for one in refused} == {503}
    assert max(one.ended - one.began for one in refused) < 1
    assert back - healed_at < BACK_SECONDS_MAX + 1, "a busy machine takes a moment, too"
    assert not any(lease.stuck for lease in found)
    assert await _attempts(gateway) == 0
    again = await gateway.call("POST", f"/{REPO}/push/objects", more, token=token)
    assert (again.status, again.body["stored"]) == (200, len(more["objects"]))
    await check_invariants(service.database, service.store, at_rest=False)


async def _requests_in(proxy: S3Proxy, *, seconds: float) -> int:
    before = len(proxy.requests)
    await SystemClock().sleep(seconds)
    return len(proxy.requests) - before


async def _reserved(gateway: LiveGateway) -> int:
    row = await gateway.service.database.row(
        "SELECT count(*) AS n FROM events WHERE type = 'lease.reserved'"
    )
    return int(row["n"])


async def _attempts(gateway: LiveGateway) -> int:
    row = await gateway.service.database.row("SELECT max(attempts) AS n FROM mpack_leases")
    return int(row["n"])
