"""What a fault test sets up before processes start, and looks at when they are gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from gateway.auth import Scope
from gateway.service import Service
from gateway.wire.body import decode
from gateway.wire.limits import WireLimits
from gateway.wire.messages import PushObject, PushRequest
from leases.engine import LeaseEngine
from leases.ids import new_mpack_id
from leases.lessor import new_lease_event
from leases.model import LeaseActivated, LeaseKind, LeaseReserved, Trigger, storage_key
from tests.factories import History, make_history, push_body
from tests.fault.processes import GatewayProcess, Gateways
from tests.integration.gateways import settings_for
from tests.invariants import check_invariants, durable_snapshot
from tests.leasing import BLOB, BLOB_SHA256, CALLER
from tests.stores import view_of

REPO = "ada/demo"
_RESERVED_FOR = timedelta(seconds=60)
_APPENDED_AT_ONCE = 1000
_STATES = """
SELECT state, count(*) AS leases FROM mpack_leases GROUP BY state ORDER BY state"""
# Passed deadlines are not enough: what is claimed or failed has to be due again.
_SECONDS_UNTIL_ALL_IS_DUE = """
SELECT coalesce(max(extract(epoch FROM greatest(delete_at, next_attempt_at, claimed_until)
       - clock_timestamp())), 0)::float8 AS seconds FROM mpack_leases WHERE state <> 'reclaimed'"""


@asynccontextmanager
async def inside(gateways: Gateways) -> AsyncIterator[Service]:
    """The service in this process, with nothing that runs by itself."""
    settings = settings_for(gateways.database_url, gateways.store)
    async with Service(settings, watch=False) as service:
        await service.engine.owner.check()
        yield service


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """A repo that holds a history, and the right to push more."""

    history: History
    token: str


async def a_pushed_repo(service: Service, *, commits: int = 6) -> Pushed:
    """A repo with a history in it."""
    token = (await service.tokens.create(name="test", scopes=[Scope.PUSH])).secret
    owner, slug = REPO.split("/")
    repo = await service.repos.ensure(owner=owner, slug=slug, visibility="public", caller=CALLER)
    history = make_history(1, commits=commits)
    objects = [PushObject(**item) for item in history.objects()]
    await service.segments.store(repo.repo_id, objects, CALLER)
    request = decode(push_body(history.bundle()), PushRequest, limits=WireLimits())
    await service.pushes.push(repo, request, CALLER)
    return Pushed(history=history, token=token)


async def grant_together(
    service: Service, count: int, *, due_in_seconds: float
) -> tuple[list[str], datetime]:
    """Active leases with their blobs, all due at the same instant; answers their keys and it.

    Made quickly: the facts go into the log a thousand at a time, the blobs past the gateway.
    """
    engine = service.engine
    ids = [new_mpack_id() for _ in range(count)]
    keys = [storage_key(engine.log_id, mpack_id) for mpack_id in ids]
    now = (await engine.log.head())["now"]
    reservations = [
        LeaseReserved(
            kind=LeaseKind.PACK,
            repo_id="repo-1",
            storage_key=key,
            granted_at=now,
            delete_at=now + _RESERVED_FOR,
        )
        for key in keys
    ]
    await _append(engine, ids, reservations, expected_version=0)
    await asyncio.to_thread(view_of(service.settings.data_dir).write, keys, BLOB)
    now = (await engine.log.head())["now"]
    due_at = now + timedelta(seconds=due_in_seconds)
    activation = LeaseActivated(
        sha256=BLOB_SHA256,
        size_bytes=len(BLOB),
        activated_at=now,
        expires_at=due_at,
        delete_at=due_at,
        ttl_seconds=due_in_seconds,
    )
    await _append(engine, ids, [activation] * count, expected_version=1)
    return keys, due_at


async def _append(
    engine: LeaseEngine, ids: Sequence[str], facts: Sequence[Any], *, expected_version: int
) -> None:
    events = [
        new_lease_event(
            mpack_id, fact, caller=CALLER, replica="test", expected_version=expected_version
        )
        for mpack_id, fact in zip(ids, facts, strict=True)
    ]
    for start in range(0, len(events), _APPENDED_AT_ONCE):
        await engine.log.append(events[start : start + _APPENDED_AT_ONCE])


async def states(service: Service) -> dict[str, int]:
    """How many leases there are of each state."""
    return {row["state"]: row["leases"] for row in await service.database.fetch(_STATES)}


def transient_blobs(gateways: Gateways) -> set[str]:
    """The keys of all packs that lie in the store."""
    return gateways.view.packs()


async def all_are_gone(gateways: Gateways) -> bool:
    """No pack lies in the store any more."""
    return await asyncio.to_thread(gateways.view.is_empty)


async def all_are_reclaimed(service: Service, count: int) -> bool:
    """So many leases there are, and all of them have ended."""
    return await states(service) == {"reclaimed": count}


async def deadlines(service: Service) -> dict[str, datetime]:
    """When each pack was due, by its key."""
    rows = await service.database.fetch("SELECT storage_key, delete_at FROM mpack_leases")
    return {row["storage_key"]: row["delete_at"] for row in rows}


async def claims_are_held(service: Service) -> bool:
    """Somebody has claimed leases and is not through with them."""
    row = await service.database.fetchrow(
        "SELECT count(*) AS held FROM mpack_leases WHERE claim_token IS NOT NULL"
    )
    return bool(row and row["held"])


async def fetch(
    process: GatewayProcess, pushed: Pushed, *, ttl_seconds: float, **options: Any
) -> dict[str, Any]:
    """Fetch everything behind a URL; answers the body of the 200."""
    body = {"want": [pushed.history.head.commit_id], "have": [], "ttl_seconds": ttl_seconds}
    answer = await process.call("POST", f"/{REPO}/fetch/mpack", body | options)
    assert answer.status == 200, answer.body
    return answer.body


async def push(process: GatewayProcess, history: History, token: str) -> None:
    """Push a whole history: first its objects, then the rest."""
    objects = {"objects": history.objects()}
    answer = await process.call("POST", f"/{REPO}/push/objects", objects, token=token)
    assert answer.status == 200, answer.body
    body = {"bundle": history.bundle(), "branch": "main", "force": False}
    answer = await process.call("POST", f"/{REPO}/push", body, token=token)
    assert (answer.status, answer.body.get("ok")) == (200, True), answer.body


async def until_all_is_due(service: Service) -> None:
    """Wait, in the database, until every open lease may be claimed."""
    row = await service.database.row(_SECONDS_UNTIL_ALL_IS_DUE)
    assert row["seconds"] < 10, "something is due much too late"
    await service.database.fetch("SELECT pg_sleep($1)", max(0.0, row["seconds"]) + 0.002)


async def sweep_once_and_check(service: Service, *, durable: dict[str, str] | None = None) -> None:
    """One sweep, when every deadline and claim has passed, leaves nothing open, and all holds."""
    await until_all_is_due(service)
    await service.engine.reaper.sweep(Trigger.COMMAND)
    assert set(await states(service)) <= {"reclaimed"}
    await check_invariants(
        service.database, service.store, policy=service.settings.lease, durable=durable
    )


async def durable_blobs(service: Service) -> dict[str, str]:
    """The hashes of everything that nobody may touch."""
    return await durable_snapshot(service.store)
