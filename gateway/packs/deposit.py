"""From a plan to a pack under an active lease: the row before the blob, the promise after it.

What if we die, or fail …
- after the reservation: its row falls due, and a worker deletes what may be under its key;
- before the put: nothing is stored; the reservation is revoked, so that it does not linger;
- during the put: a put that timed out may still land after a deletion, so the reservation is left
  to its deadline, which the put's own deadline precedes by `upload_margin_seconds`;
- after the put, before the activation is recorded: as after the reservation.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import structlog

from gateway.errors import BuildFailed
from gateway.packs.build import PackBuilder
from gateway.packs.flight import Deposited
from gateway.packs.plan import Plan
from gateway.packs.spool import Spool
from gateway.packs.store_calls import first_failure, store_call
from leases.engine import LeaseEngine
from leases.errors import Conflict, Failure, LeaseEnded, LeaseMissing, StoreUnavailable
from leases.lessor import Caller
from leases.model import Lease, LeaseKind, LeaseState, RecordResidue
from leases.ports import BlobStore
from leases.steps import Step, Steps, no_steps

# Small packs are put as one piece: a store need not stream, or buffer, what is in memory anyway.
_PUT_AT_ONCE_BYTES = 4 * 1024 * 1024
_LOOK_SECONDS_MAX = 2.0

_log = structlog.get_logger(__name__)


class Deposits:
    """Builds planned packs and puts them into the store, each under its own lease."""

    def __init__(
        self,
        engine: LeaseEngine,
        builder: PackBuilder,
        *,
        store: BlobStore,
        steps: Steps = no_steps,
    ) -> None:
        self._engine = engine
        self._store = store
        self._builder = builder
        self._step = steps

    async def reserve(
        self, mpack_id: str, *, repo_id: str, cache_key: str | None, caller: Caller
    ) -> Lease:
        """Stand the row before the blob."""
        lease = await self._engine.lessor.reserve(
            mpack_id=mpack_id,
            kind=LeaseKind.PACK,
            repo_id=repo_id,
            cache_key=cache_key,
            caller=caller,
        )
        self._step(Step.LEASE_RESERVED)
        return lease

    async def build(self, plan: Plan, lease: Lease, caller: Caller) -> str:
        """Finish the pack in its spool; its hash. The reservation is extended meanwhile, and
        revoked when the build fails.
        """
        try:
            async with self._kept(lease, caller):
                await self._builder.fill(plan)
                sha256 = await plan.writer.finish()
        except BaseException:
            await self._give_up(lease, caller)
            raise
        self._step(Step.PACK_BUILT)
        return sha256

    async def put(self, lease: Lease, spool: Spool, caller: Caller) -> None:
        """Store the finished pack, before the reservation's deadline or not at all.

        Errors: StoreUnavailable; BuildFailed when the deadline has passed already.
        """
        if self._left(lease) < self._engine.policy.upload_limit_seconds / 2:
            try:
                lease = await self._engine.lessor.extend(lease.mpack_id, caller=caller)
            except (Conflict, LeaseEnded, LeaseMissing) as refusal:
                raise BuildFailed(mpack_id=lease.mpack_id) from refusal
        small = spool.size_bytes <= _PUT_AT_ONCE_BYTES
        data = await spool.read(0, spool.size_bytes) if small else spool.chunks()
        try:
            async with asyncio.timeout(self._left(lease)):
                with store_call("put"):
                    await self._store.put(lease.storage_key, data)
        except TimeoutError as error:
            raise StoreUnavailable(call="put", cause="deadline") from error
        self._step(Step.PACK_PUT)

    async def activate(
        self, lease: Lease, plan: Plan, *, sha256: str, ttl_seconds: float, caller: Caller
    ) -> Deposited:
        """Begin the promise.

        Errors: BuildFailed (503) when the lease has ended meanwhile; the blob is deleted then.
        """
        size_bytes = plan.writer.spool.size_bytes
        try:
            lease = await self._engine.lessor.activate(
                lease.mpack_id,
                sha256=sha256,
                size_bytes=size_bytes,
                ttl_seconds=ttl_seconds,
                caller=caller,
            )
        except (Conflict, LeaseEnded, LeaseMissing) as refusal:
            await self._delete_own(lease, size_bytes, caller)
            raise BuildFailed(mpack_id=lease.mpack_id) from refusal
        self._engine.granted(lease)
        self._step(Step.LEASE_ACTIVATED)
        return Deposited(lease=lease, counts=plan.counts)

    def _left(self, lease: Lease) -> float:
        """Seconds until a put has to end."""
        policy = self._engine.policy
        deadline = lease.delete_at - timedelta(seconds=policy.upload_margin_seconds)
        return (deadline - self._engine.database_clock.now()).total_seconds()

    @asynccontextmanager
    async def _kept(self, lease: Lease, caller: Caller) -> AsyncIterator[None]:
        """Move the reservation's deadline on for as long as the block lasts."""
        half = self._engine.policy.upload_limit_seconds / 2

        async def keep() -> None:
            current = lease
            while True:
                await self._engine.clock.sleep(min(_LOOK_SECONDS_MAX, half / 2))
                if self._left(current) < half:
                    try:
                        current = await self._engine.lessor.extend(lease.mpack_id, caller=caller)
                    except Failure as failure:  # The put finds out whether it is too late.
                        _log.warning(
                            "reservation_not_extended",
                            mpack_id=lease.mpack_id,
                            error=failure.code,
                        )

        try:
            async with asyncio.TaskGroup() as tasks:
                keeping = tasks.create_task(keep())
                yield
                keeping.cancel()
        except BaseExceptionGroup as group:
            raise first_failure(group) from group

    async def _give_up(self, lease: Lease, caller: Caller) -> None:
        try:
            revoked = await self._engine.lessor.revoke(
                lease.mpack_id, reason="the pack could not be built", caller=caller
            )
            self._engine.granted(revoked)
        except Failure as failure:
            _log.warning("reservation_left", mpack_id=lease.mpack_id, error=failure.code)

    async def _delete_own(self, lease: Lease, size_bytes: int, caller: Caller) -> None:
        """The lease ended before the pack was there: delete it once; the record of it, if the
        lease's own cleanup is recorded already. Otherwise that cleanup is still to come.
        """
        _log.warning("activation_refused", mpack_id=lease.mpack_id)
        try:
            with store_call("delete"):
                await self._engine.store.delete(lease.storage_key)
            current, _ = await self._engine.lessor.load(lease.mpack_id)
            if current is not None and current.state is LeaseState.RECLAIMED:
                await self._engine.lessor.carry_out(
                    lease.mpack_id, RecordResidue(size_bytes=size_bytes), caller=caller
                )
        except Failure as failure:
            _log.warning("own_pack_not_deleted", mpack_id=lease.mpack_id, error=failure.code)
