"""Kill -9 at every named step, a fresh start, the same work again: nothing is lost or left over.

A step that no scenario crashes at fails here, so nobody adds one untested.
"""

from __future__ import annotations

import signal
from contextlib import nullcontext
from dataclasses import dataclass, field

import httpx2
import pytest

from gateway.service import Service
from leases.clock import SystemClock
from leases.steps import Step
from tests.factories import History
from tests.fault.processes import GatewayProcess, Gateways
from tests.fault.proxy import proxied
from tests.fault.scene import (
    REPO,
    Pushed,
    a_pushed_repo,
    durable_blobs,
    fetch,
    inside,
    push,
    states,
    sweep_once_and_check,
    transient_blobs,
)
from tests.integration.test_archive import ARCHIVES
from tests.integration.test_cli_gc import COLLECTIONS, JOINS
from tests.leasing import granted

TTL_SECONDS = 1.5
# A dead builder's slot would be free after ten seconds by itself.
RETRY_SECONDS_MAX = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What must stand after the crash: leases by state, and blobs under the transient prefix."""

    leases: dict[str, int] = field(default_factory=dict)
    blobs: int = 0


RESERVED = Left(leases={"reserved": 1})
ACTIVE = Left(leases={"active": 1}, blobs=1)

FETCHES = {
    Step.SLOT_TAKEN: Left(),
    Step.LEASE_RESERVED: RESERVED,
    Step.PACK_BUILT: RESERVED,
    Step.PACK_PUT: Left(leases={"reserved": 1}, blobs=1),
    Step.LEASE_ACTIVATED: ACTIVE,
    Step.SLOT_PUBLISHED: ACTIVE,
    Step.URL_SIGNED: ACTIVE,
    Step.LEASE_RENEWED: ACTIVE,
}
PUSHES = {
    Step.SEGMENT_PENDING: ("pending", False),
    Step.SEGMENT_PUT: ("pending", True),
    Step.SEGMENT_LIVE: ("live", True),
    Step.PUSH_WRITTEN: ("live", True),
    Step.PUSH_COMMITTED: ("live", True),
}
REAPS = {
    Step.LEASES_CLAIMED: ACTIVE,
    Step.BLOBS_DELETED: Left(leases={"active": 1}),
    Step.RECLAIMS_RECORDED: Left(leases={"reclaimed": 1}),
    Step.FAILURES_RECORDED: ACTIVE,
}


@pytest.mark.parametrize("step", Step)
def test_every_step_is_crashed_at(step: Step) -> None:
    every = (FETCHES, PUSHES, REAPS, COLLECTIONS, JOINS, ARCHIVES)
    assert sum(step in scenarios for scenarios in every) == 1


async def crashed(process: GatewayProcess) -> None:
    """It died by kill -9, and so at its step: nobody else sends that signal."""
    assert await process.died() == -signal.SIGKILL


async def finish(gateways: Gateways, healthy: GatewayProcess, durable: dict[str, str]) -> None:
    """The healthy process ends in order; then one sweep, and everything holds."""
    # uvicorn shuts down in order and then raises the signal again.
    assert healthy.terminate() == -signal.SIGTERM
    async with inside(gateways) as service:
        await sweep_once_and_check(service, durable=durable)
    assert transient_blobs(gateways) == set()


@pytest.mark.parametrize("step", FETCHES)
async def test_a_fetch_that_crashed_is_fetched_again(gateways: Gateways, step: Step) -> None:
    async with inside(gateways) as service:
        pushed = await a_pushed_repo(service)
        durable = await durable_blobs(service)
    doomed = await gateways.start_serving(step)
    if step is Step.LEASE_RENEWED:  # By a second fetch, which is to live longer.
        await fetch(doomed, pushed, ttl_seconds=TTL_SECONDS)
    with pytest.raises(httpx2.TransportError):
        await fetch(doomed, pushed, ttl_seconds=TTL_SECONDS + 1)
    await crashed(doomed)
    async with inside(gateways) as service:
        assert (
            Left(leases=await states(service), blobs=len(transient_blobs(gateways)))
            == (FETCHES[step])
        )
    healthy = await gateways.start()
    await fetched_whole(healthy, pushed)
    await finish(gateways, healthy, durable)


async def fetched_whole(process: GatewayProcess, pushed: Pushed) -> None:
    """A fetch brings the whole history, soon."""
    clock = SystemClock()
    began = clock.monotonic()
    answer = await fetch(process, pushed, ttl_seconds=TTL_SECONDS)
    assert clock.monotonic() - began < RETRY_SECONDS_MAX, "it waited for a dead builder"
    assert answer["counts"]["commits"] == len(pushed.history.commits)
    pack = await process.http.get(answer["mpack_url"])
    assert (pack.status_code, len(pack.content)) == (200, answer["size_bytes"])


@pytest.mark.parametrize("step", PUSHES)
async def test_a_push_that_crashed_is_pushed_again(gateways: Gateways, step: Step) -> None:
    async with inside(gateways) as service:
        pushed = await a_pushed_repo(service)
        durable = await durable_blobs(service)
    more = grown(pushed.history)
    doomed = await gateways.start_serving(step)
    with pytest.raises(httpx2.TransportError):
        await push(doomed, more, pushed.token)
    await crashed(doomed)
    async with inside(gateways) as service:
        assert await newest_segment(service, gateways) == PUSHES[step]
    healthy = await gateways.start()
    await fetched_whole(healthy, pushed)
    await push(healthy, more, pushed.token)
    refs = await healthy.call("GET", f"/{REPO}/refs")
    assert refs.body["branch_heads"] == {"main": more.head.commit_id}
    await fetched_whole(healthy, Pushed(history=more, token=pushed.token))
    await finish(gateways, healthy, durable)


def grown(history: History) -> History:
    """The same history with one commit more."""
    more = History(contents=dict(history.contents), commits=dict(history.commits))
    added = more.content(b"something new")
    more.commit({**history.head.manifest, "new.txt": added}, parents=[history.head])
    return more


async def newest_segment(service: Service, gateways: Gateways) -> tuple[str, bool]:
    """The state of the youngest segment, and whether its blob is there."""
    row = await service.database.row(
        "SELECT state, storage_key FROM segments ORDER BY mpack_id DESC LIMIT 1"
    )
    return row["state"], row["storage_key"] in gateways.view.keys("segments/")


@pytest.mark.parametrize("step", REAPS)
async def test_a_reap_that_crashed_is_done_by_the_next(gateways: Gateways, step: Step) -> None:
    async with inside(gateways) as service:
        pushed = await a_pushed_repo(service)
        durable = await durable_blobs(service)
        lease = await granted(service.engine, ttl_seconds=0.5)
    unwritable = step is Step.FAILURES_RECORDED
    async with proxied(gateways.database_url) as (_proxy, url):
        locked = gateways.view.locked(lease.storage_key) if unwritable else nullcontext()
        with locked:
            # Without root's powers a process does not reach PostgreSQL's own socket.
            doomed = await gateways.start(crash_at=step, confined=True, database_url=url)
            await crashed(doomed)
    async with inside(gateways) as service:
        assert (
            Left(leases=await states(service), blobs=len(transient_blobs(gateways)))
            == (REAPS[step])
        )
        work = await service.database.fetchrow("SELECT attempts, claimed_by FROM mpack_leases")
    assert work is not None
    assert work["attempts"] == int(unwritable)
    assert (work["claimed_by"] is not None) == (step in (Step.LEASES_CLAIMED, Step.BLOBS_DELETED))
    healthy = await gateways.start()
    await fetched_whole(healthy, pushed)
    await finish(gateways, healthy, durable)
