"""What runs in the process that dies: one scenario, on a real database and a real store.

The process is forked from a server that has imported everything and done nothing (multiprocessing's
`forkserver`), so that a crash costs a fork and not a start of Python.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy.ext.asyncio import create_async_engine

from gateway.packs.fetch import PackService
from gateway.packs.transaction import reading
from gateway.packs.uploads import Uploads
from gateway.service import make_store
from gateway.settings import Settings, database_dsn
from leases.database import Database
from leases.engine import LeaseEngine
from leases.errors import StoreUnavailable
from leases.ids import new_mpack_id
from leases.model import Lease, Trigger, storage_key
from leases.policy import LeasePolicy
from leases.ports import DeleteOutcome
from tests.fault.effects import DyingStore, Effects, Point, Side, dying_connections
from tests.leasing import BLOB, CALLER, due, granted, granted_many, reserved

# Short, so that what a crash leaves is due soon; the claim limit is not, so that nothing here can
# be the limit of a claim that ran out.
POLICY = LeasePolicy(
    upload_limit_seconds=1,
    upload_margin_seconds=0.1,
    upload_grace_seconds=0.1,
    share_ttl_min_seconds=0,
    share_guard_seconds=0,
    share_guard_ratio=0,
    retry_first_seconds=0.1,
    look_ahead_seconds=0.05,
    reap_workers=1,
    circuit_pause_seconds=0.05,
)
TTL_SECONDS = 0.3
_ADOPTED = """
SELECT mpack_id FROM mpack_leases WHERE state <> 'reclaimed' AND repo_id = '' AND revoked_at IS NULL
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A database with a repo in it, and a store; `want` is the repo's head."""

    settings: Settings
    repo_id: str
    want: str


class SulkyStore(DyingStore):
    """A store whose deletions fail, as `failure` says; for the life of the process."""

    failure: Exception | None = None

    async def delete_many(self, keys: Any) -> Any:
        if self.failure is not None:
            number = self._effects.begin("delete_many")
            answers: dict[str, DeleteOutcome | Exception] = dict.fromkeys(keys, self.failure)
            self._effects.die_at(number, Side.AFTER)
            return answers
        return await super().delete_many(keys)


@dataclass(slots=True, kw_only=True)
class Doomed:
    """The engine of a process that will die, with nothing that runs by itself."""

    world: World
    engine: LeaseEngine
    packs: PackService
    store: SulkyStore
    effects: Effects

    async def fetch(self, ttl_seconds: float = TTL_SECONDS) -> None:
        await self.packs.fetch_mpack(
            partial(reading, self.engine.database),
            self.world.repo_id,
            want=[self.world.want],
            have=[],
            ttl_seconds=ttl_seconds,
            caller=CALLER,
        )


@asynccontextmanager
async def doomed_in(world: World, effects: Effects) -> AsyncIterator[Doomed]:
    """It, for the time of the block."""
    engine = create_async_engine(
        database_dsn(world.settings.database_url),
        connect_args={"connection_class": dying_connections(effects)},
    )
    database = Database(engine)
    async with make_store(world.settings, clock=lambda: leases.database_clock.now()) as own:  # noqa: PLW0108
        store = SulkyStore(own, effects)
        async with LeaseEngine(database, store, POLICY, watch=False) as leases:
            await leases.owner.check()
            async with PackService(leases, world.settings.pack) as packs:
                yield Doomed(world=world, engine=leases, packs=packs, store=store, effects=effects)
    await database.close()
    await engine.dispose()


# The scenarios. What they make first does not count; what follows `armed` does. ----------------


async def _fetch(doomed: Doomed) -> None:
    """slot, reserve, put, activate, publish, presign."""
    doomed.effects.armed = True
    await doomed.fetch()


async def _share(doomed: Doomed) -> None:
    """renew, presign."""
    await doomed.fetch()
    doomed.effects.armed = True
    await doomed.fetch(2 * TTL_SECONDS)


async def _revoke(doomed: Doomed) -> None:
    """revoke, and what follows it."""
    lease = await granted(doomed.engine, ttl_seconds=4 * TTL_SECONDS)
    doomed.effects.armed = True
    await doomed.engine.lessor.revoke(lease.mpack_id, reason="wanted", caller=CALLER)
    await doomed.engine.reaper.sweep(Trigger.COMMAND)


async def _reap(doomed: Doomed) -> None:
    """claim, abort the upload of a reservation, delete, record."""
    leases = [await reserved(doomed.engine), *await granted_many(doomed.engine, 3)]
    await _all_due(doomed, leases)
    doomed.effects.armed = True
    await doomed.engine.reaper.sweep(Trigger.COMMAND)


async def _fail(doomed: Doomed) -> None:
    """claim, a deletion that fails, its record, its count."""
    await _all_due(doomed, await granted_many(doomed.engine, 2))
    doomed.store.failure = ValueError("not this one")
    doomed.effects.armed = True
    await doomed.engine.reaper.sweep(Trigger.COMMAND)


async def _outage(doomed: Doomed) -> None:
    """claim, a store that is out, the probe, hand back."""
    await _all_due(doomed, await granted_many(doomed.engine, 2))
    # Else the circuits of requests ask as well, at any moment, and effects have no order.
    doomed.engine.reaper.probe.found_out = lambda: None
    doomed.store.failure = StoreUnavailable()
    doomed.effects.armed = True
    await doomed.engine.reaper.sweep(Trigger.COMMAND)


async def _reconcile(doomed: Doomed) -> None:
    """The mark; a blob that came back, and one whose row was lost, which nobody waits a day for."""
    engine = doomed.engine
    (ended,) = await granted_many(engine, 1)
    await _all_due(doomed, [ended])
    await engine.reaper.sweep(Trigger.COMMAND)
    for key in (ended.storage_key, storage_key(engine.log_id, new_mpack_id())):
        await engine.store.put(key, BLOB)
    doomed.effects.armed = True
    await engine.owner.check()
    await engine.reconciler.run_once()
    await revoke_adopted(engine)
    await engine.reaper.sweep(Trigger.COMMAND)


async def revoke_adopted(engine: LeaseEngine) -> None:
    """What an operator does who does not want to wait for the end of their longest life."""
    for row in await engine.database.fetch(_ADOPTED):
        await engine.lessor.revoke(row["mpack_id"], reason="adopted", caller=CALLER)


async def _upload(doomed: Doomed) -> None:
    """reserve for an upload, presign."""
    uploads = Uploads(doomed.engine.store, POLICY, upload_bytes_max=1 << 20)
    doomed.effects.armed = True
    await uploads.presign(doomed.engine, "repo-1", ["a" * 64, "b" * 64], caller=CALLER)


async def _recover(doomed: Doomed) -> None:
    """What a restarted process does, to die in that as well."""
    doomed.effects.armed = True
    await doomed.engine.owner.check()
    await doomed.engine.reaper.sweep(Trigger.START_UP)
    await doomed.fetch()
    await doomed.engine.reconciler.run_once()
    await doomed.engine.reaper.sweep(Trigger.PERIODIC)


async def _all_due(doomed: Doomed, leases: list[Lease]) -> None:
    for lease in leases:
        await due(doomed.engine.database, lease)


# Blobs without rows are there beforehand: as after the loss of the newest rows.
ORPHANED = frozenset({"reconcile"})

SCENARIOS: dict[str, Callable[[Doomed], Awaitable[None]]] = {
    "fetch": _fetch,
    "share": _share,
    "revoke": _revoke,
    "reap": _reap,
    "fail": _fail,
    "outage": _outage,
    "reconcile": _reconcile,
    "upload": _upload,
    "recover": _recover,
}


def run(world: World, scenario: str, point: Point | None, report: Path) -> None:
    """The process's whole life; without a point it ends well."""

    async def life() -> None:
        effects = Effects(point, report)
        async with doomed_in(world, effects) as doomed:
            await SCENARIOS[scenario](doomed)
            effects.armed = False

    asyncio.run(life())
