"""Three replicas on one database and one store, behind one address."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from gateway.client import AsyncClient
from gateway.service import Service
from leases.clock import SystemClock
from tests.fault.balancer import balanced
from tests.fault.processes import GatewayProcess, Gateways
from tests.fault.scene import (
    REPO,
    Pushed,
    a_pushed_repo,
    all_are_gone,
    all_are_reclaimed,
    durable_blobs,
    inside,
    states,
    sweep_once_and_check,
)
from tests.fault.test_two_processes import due_together, lateness_ms_max
from tests.integration.gateways import free_port
from tests.leasing import until

REPLICAS = 3
MANY = 3000
CALLERS = 6


@asynccontextmanager
async def replicas(
    gateways: Gateways, **settings: Any
) -> AsyncIterator[tuple[str, dict[int, GatewayProcess]]]:
    """Their one URL, and each by its port."""
    ports = [free_port() for _ in range(REPLICAS)]
    async with balanced(ports) as url:
        told = settings | {"public_url": url}
        started = await asyncio.gather(*(gateways.start(port=port, **told) for port in ports))
        yield url, dict(zip(ports, started, strict=True))


async def test_what_is_due_together_is_shared_out(gateways: Gateways) -> None:
    """Every replica takes part, and each lease is deleted and recorded by one of them."""
    async with replicas(gateways) as (_url, processes):
        due = await due_together(gateways, MANY, due_in_seconds=3)
        with due.watch:
            await until(lambda: all_are_gone(gateways))
        async with inside(gateways) as service:
            await due.check(service, late_seconds_max=3)
            await each_replica_reclaimed_some(service)
    assert len(processes) == REPLICAS


async def each_replica_reclaimed_some(service: Service) -> None:
    rows = await service.database.fetch(
        "SELECT data::jsonb ->> 'replica' AS replica, count(*) AS leases FROM events"
        " WHERE type = 'lease.reclaimed' GROUP BY 1"
    )
    assert len(rows) > 1, rows


async def test_equal_fetches_share_one_pack_over_all_replicas(gateways: Gateways) -> None:
    async with inside(gateways) as service:
        pushed = await a_pushed_repo(service)
    async with replicas(gateways) as (url, _processes):
        answers = await asyncio.gather(*(fetched(url, pushed) for _ in range(4 * REPLICAS)))
        assert len(set(answers)) == 1
        await until(lambda: all_are_gone(gateways))
    async with inside(gateways) as service:
        assert sum((await states(service)).values()) == 1
        await sweep_once_and_check(service)


async def fetched(url: str, pushed: Pushed) -> str:
    """Fetch through the balancer with a client of its own; answers the pack's id."""
    async with AsyncClient(f"{url}/{REPO}", token=pushed.token) as client:
        answer = await client.fetch_mpack([pushed.history.head.commit_id], ttl_seconds=2)
        assert answer.mpack_id is not None
        with await client.download(answer) as got:
            assert got.path.stat().st_size == answer.size_bytes
        return answer.mpack_id


async def test_a_rolling_restart_under_load_loses_no_request(gateways: Gateways) -> None:
    """Each replica in turn gets SIGTERM, ends, and is started anew, while clients go on."""
    async with inside(gateways) as service:
        pushed = await a_pushed_repo(service)
        durable = await durable_blobs(service)
    done: list[str] = []
    over = asyncio.Event()

    async def call() -> None:
        while not over.is_set():
            done.append(await fetched(url, pushed))

    async with replicas(gateways, shutdown_timeout_seconds=5) as (url, processes):
        async with asyncio.TaskGroup() as callers:
            for _ in range(CALLERS):
                callers.create_task(call())
            for port, process in processes.items():
                await more_than(done, CALLERS)
                await asyncio.to_thread(process.terminate)
                processes[port] = await gateways.start(port=port, public_url=url)
            await more_than(done, CALLERS)
            over.set()
        for process in gateways.processes[:REPLICAS]:
            assert process.said("replica_stopping"), "it ended without saying so"
            assert not process.said("reap_unfinished")
        await until(lambda: all_are_gone(gateways))
    async with inside(gateways) as service:
        await sweep_once_and_check(service, durable=durable)
        assert await lateness_ms_max(service) < 2000


async def more_than(done: list[str], more: int) -> None:
    """Wait until so many further calls have ended well."""
    enough = len(done) + more

    async def reached() -> bool:
        return len(done) >= enough

    await until(reached)


async def test_a_replica_that_stops_says_not_ready_and_gives_its_claims_back(
    gateways: Gateways,
) -> None:
    """Readiness goes first; only then does it stop to listen."""
    stopping = await gateways.start(drain_seconds=1)
    due = await due_together(gateways, 200, due_in_seconds=1.5)
    asked_at = SystemClock().monotonic()
    stopping.process.terminate()

    async def says_it_is_not_ready() -> bool:
        answer = await stopping.call("GET", "/readyz")
        return (answer.status, answer.body["status"]) == (503, "stopping")

    await until(says_it_is_not_ready)
    assert (await stopping.call("GET", "/livez")).status == 200
    await asyncio.to_thread(stopping.process.wait, 20)
    assert SystemClock().monotonic() - asked_at >= 1
    async with inside(gateways) as service:
        row = await service.database.row(
            "SELECT count(*) AS held FROM mpack_leases WHERE claim_token IS NOT NULL"
        )
        assert row["held"] == 0
        with due.watch:
            await gateways.start()
            await until(lambda: all_are_gone(gateways))
        await until(lambda: all_are_reclaimed(service, 200))
        await sweep_once_and_check(service)
