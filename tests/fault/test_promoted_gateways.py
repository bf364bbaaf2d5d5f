"""Gateways behind a database that dies, and whose standby takes over without the newest commits.

What the engine alone does then is in test_promotion.py; these are processes, as they are run.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gateway.embedded_postgres import EmbeddedPostgres
from gateway.service import Service
from leases.clock import SystemClock
from leases.ids import mpack_id_time
from tests.databases import TEMPLATE
from tests.fault.processes import SHORT, GatewayProcess, Gateways, gateways_on
from tests.fault.proxy import proxied, socket_of
from tests.fault.scene import REPO, Pushed, a_pushed_repo, all_are_gone, fetch, inside
from tests.fault.standby import caught_up, promote, standby_of
from tests.integration.gateways import settings_for
from tests.invariants import check_invariants
from tests.leasing import connection_to, until
from tests.stores import variables_of

# As short as may be: processes notice the loss, and a command runs, within it.
LIFE_SECONDS = 8.0
SERVED: dict[str, Any] = {
    "ttl_default_seconds": LIFE_SECONDS,
    "lease_life_max_seconds": LIFE_SECONDS,
    "reconcile_interval_seconds": 0.4,
    "sweep_interval_seconds": 0.4,
}


@pytest.mark.timeout(120)
async def test_gateways_write_again_after_a_promotion_and_see_that_commits_were_lost(
    primary: EmbeddedPostgres, standby_folder: Path, tmp_path: Path
) -> None:
    async with (
        standby_of(primary, standby_folder) as (standby, shipping),
        proxied(primary.url(TEMPLATE)) as (address, through),
        gateways_on(through, tmp_path) as gateways,
    ):
        async with inside(gateways) as service:
            pushed = await a_pushed_repo(service)
        both = [await gateways.start(**SERVED) for _ in range(2)]
        kept = await fetch(both[0], pushed, ttl_seconds=LIFE_SECONDS, share=False)
        await caught_up(primary, standby)
        shipping.loses = lambda _shipped: True
        lost = await fetch(both[1], pushed, ttl_seconds=LIFE_SECONDS, share=False)
        lost_at = SystemClock().now()
        await until(lambda: is_published(gateways, primary))
        primary.kill()
        await promote(standby)
        address.target = socket_of(standby.url())

        for gateway in both:
            await until(partial(can_fetch, gateway, pushed))
            await until(partial(says_paused, gateway))
            assert gateway.said("reaping_paused")
        assert await row_of(standby, lost) is None, "its commits were lost"
        assert {kept["mpack_id"], lost["mpack_id"]} <= names(gateways), "nothing goes meanwhile"

        await command(gateways, "reap", "resume", "--adopt")
        for gateway in both:
            await until(gateway.is_ready)
        await until(lambda: all_are_gone(gateways), LIFE_SECONDS + 10)
        row = await row_of(standby, lost)
        assert row is not None
        assert row["types"] == ["lease.adopted", "lease.reclaimed"]
        # Its life ends when no promise can hold any more: counted from its id, or from its blob,
        # whose time may be a second behind.
        life = timedelta(seconds=LIFE_SECONDS)
        began_at = mpack_id_time(lost["mpack_id"])
        assert began_at + life <= row["delete_at"] <= lost_at + life + timedelta(seconds=1)
        assert row["delete_at"] <= row["reclaimed_at"]
        for gateway in both:  # Their way to the database leads through this loop.
            assert await asyncio.to_thread(gateway.terminate) == -signal.SIGTERM
        await check_what_is_left(gateways)


@pytest.mark.timeout(120)
async def test_gateways_miss_what_they_wrote_when_their_connection_comes_back(
    primary: EmbeddedPostgres, standby_folder: Path, tmp_path: Path
) -> None:
    """Not only at the next sweep or comparison, which may be minutes away, and by themselves: the
    store's mark is as old as the last comparison.
    """
    rarely = SERVED | {"reconcile_interval_seconds": 3600.0, "sweep_interval_seconds": 3600.0}
    async with (
        standby_of(primary, standby_folder) as (standby, shipping),
        proxied(primary.url(TEMPLATE)) as (address, through),
        gateways_on(through, tmp_path) as gateways,
    ):
        async with inside(gateways) as service:
            pushed = await a_pushed_repo(service)
        both = [await gateways.start(**rarely) for _ in range(2)]
        await caught_up(primary, standby)
        shipping.loses = lambda _shipped: True
        for gateway in both:
            await fetch(gateway, pushed, ttl_seconds=LIFE_SECONDS, share=False)
        primary.kill()
        await promote(standby)
        address.target = socket_of(standby.url())
        for gateway in both:
            await until(partial(says_paused, gateway))
            told = gateway.said("reaping_paused")
            assert any("its newest events are lost" in line["reason"] for line in told), told


def names(gateways: Gateways) -> set[str]:
    """The ids of the packs in the store."""
    return {key.rpartition("/")[2] for key in gateways.view.packs()}


async def is_published(gateways: Gateways, primary: EmbeddedPostgres) -> bool:
    """The store's mark names the newest event, which the standby never saw."""
    async with connection_to(primary.url(TEMPLATE)) as connection:
        head = await connection.fetchval("SELECT position FROM event_head")
    told = [line for one in gateways.processes for line in one.said("log_head_published")]
    return any(line["position"] == head for line in told)


async def can_fetch(gateway: GatewayProcess, pushed: Pushed) -> bool:
    """A pack is built and leased: written to the log, the table and the store."""
    body = {"want": [pushed.history.head.commit_id], "have": [], "share": False}
    try:
        answer = await gateway.call("POST", f"/{REPO}/fetch/mpack", body)
    except httpx2.TransportError:
        return False
    return answer.status == 200


async def says_paused(gateway: GatewayProcess) -> bool:
    """By its /readyz: it serves, and deletes nothing."""
    answer = await gateway.call("GET", "/readyz")
    return answer.status == 200 and answer.body["checks"]["reaping"]["state"] == "paused"


async def row_of(server: EmbeddedPostgres, fetched: dict[str, Any]) -> dict[str, Any] | None:
    """The lease of a fetched pack with the types of its events."""
    async with connection_to(server.url(TEMPLATE)) as connection:
        row = await connection.fetchrow(
            "SELECT delete_at, reclaimed_at, (SELECT array_agg(type ORDER BY position)"
            " FROM events WHERE stream = 'lease/' || mpack_id) AS types"
            " FROM mpack_leases WHERE mpack_id = $1",
            fetched["mpack_id"],
        )
    return None if row is None else dict(row)


async def command(gateways: Gateways, *words: str) -> None:
    """A command in a process of its own, as an operator gives it."""
    told = {"database_url": gateways.database_url, **SHORT, **SERVED}
    told |= variables_of(gateways.store)
    environ = os.environ | {f"MPACK_{name.upper()}": str(value) for name, value in told.items()}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway", *words), env=environ, stderr=subprocess.PIPE
    )
    _out, said = await process.communicate()
    assert process.returncode == 0, said.decode()


async def check_what_is_left(gateways: Gateways) -> None:
    settings = settings_for(gateways.database_url, gateways.store)
    async with Service(settings, watch=False) as service:
        policy = replace(settings.lease, lease_life_max_seconds=LIFE_SECONDS)
        await check_invariants(service.database, service.store, policy=policy)
