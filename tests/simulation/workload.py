"""Callers of one replica: builders that finish, are slow or die; renewals and revocations."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from datetime import timedelta

from leases.engine import LeaseEngine
from leases.errors import Conflict, Failure, LeaseEnded, LeaseMissing
from leases.ids import new_mpack_id
from leases.lessor import Caller
from leases.model import Lease, LeaseKind, LeaseState, RecordResidue
from tests.simulation.store import SimulatedStore

_CALLER = Caller(actor="token:1")
_SHA256 = "ab" * 32


@dataclass(slots=True)
class Workload:
    """Asks `engine` for leases, about `leases_per_second`, until `is_over`."""

    engine: LeaseEngine
    store: SimulatedStore
    chance: random.Random
    leases_per_second: float
    is_over: bool = False

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            while not self.is_over:
                pause = self.chance.expovariate(self.leases_per_second)
                await self.engine.clock.sleep(pause)
                # Now and then many at once, so that they also fall due together.
                count = self.chance.choice((5, 20)) if self.chance.random() < 0.02 else 1
                ttl_seconds = self.chance.choice((0.3, 1, 3, 8, 20)) * self.chance.uniform(0.5, 1)
                for _ in range(count):
                    tasks.create_task(self._one(ttl_seconds))

    async def _one(self, ttl_seconds: float) -> None:
        try:
            lease = await self._built(ttl_seconds)
            if lease is not None:
                await self._used(lease, ttl_seconds)
        except (Failure, TimeoutError, PermissionError):
            return  # A caller that is answered 503, and does not come again.

    async def _built(self, ttl_seconds: float) -> Lease | None:
        """As `gateway.packs.deposit` does it."""
        engine, chance = self.engine, self.chance
        mpack_id = new_mpack_id(engine.clock.now())
        lease = await engine.lessor.reserve(
            mpack_id=mpack_id, kind=LeaseKind.PACK, repo_id="repo-1", caller=_CALLER
        )
        limit = engine.policy.upload_limit_seconds
        await engine.clock.sleep(chance.uniform(0, 1.2 * limit) if chance.random() < 0.1 else 0.05)
        if chance.random() < 0.1:
            return None  # The builder died, or could not build; its reservation stays.
        if chance.random() < 0.2:
            lease = await engine.lessor.extend(mpack_id, caller=_CALLER)
        left = lease.delete_at - engine.database_clock.now()
        margin = timedelta(seconds=engine.policy.upload_margin_seconds)
        async with asyncio.timeout((left - margin).total_seconds()):
            await self.store.put(lease.storage_key, mpack_id.encode())
        if chance.random() < 0.05:
            left = lease.delete_at - engine.database_clock.now()
            late = chance.choice((0, -0.005, 0.005, -0.5, chance.uniform(0, limit)))
            await engine.clock.sleep(max(0.0, left.total_seconds() + late))
        try:
            lease = await engine.lessor.activate(
                mpack_id,
                sha256=_SHA256,
                size_bytes=len(mpack_id),
                ttl_seconds=ttl_seconds,
                caller=_CALLER,
            )
        except (Conflict, LeaseEnded, LeaseMissing):
            await self._delete_own(lease)
            return None
        engine.granted(lease)
        return lease

    async def _delete_own(self, lease: Lease) -> None:
        await self.store.delete(lease.storage_key)
        current, _ = await self.engine.lessor.load(lease.mpack_id)
        if current is not None and current.state is LeaseState.RECLAIMED:
            command = RecordResidue(size_bytes=1)
            await self.engine.lessor.carry_out(lease.mpack_id, command, caller=_CALLER)

    async def _used(self, lease: Lease, ttl_seconds: float) -> None:
        """Shared for a while, right up to its end, or revoked."""
        engine, chance = self.engine, self.chance
        while chance.random() < 0.6:
            assert lease.expires_at is not None
            left = (lease.expires_at - engine.database_clock.now()).total_seconds()
            near = chance.random() < 0.3
            near_end = left - chance.choice((0, 0.001, 0.003, 0.3))
            await engine.clock.sleep(max(0.0, near_end if near else chance.uniform(0, left)))
            if chance.random() < 0.25:
                engine.granted(
                    await engine.lessor.revoke(lease.mpack_id, reason="test", caller=_CALLER)
                )
                return
            lease = await engine.lessor.renew(
                lease.mpack_id,
                ttl_seconds=ttl_seconds * chance.uniform(0.3, 1.5),
                caller=_CALLER,
                guard_seconds=0,
            )
            engine.granted(lease)
