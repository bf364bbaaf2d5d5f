"""From a plan to a pack under an active lease: the row before the blob, the promise after it.

The pack is made while the store takes it. What if we die, or fail …
- after the reservation: its row falls due, and a worker deletes what may be under its key;
- before the last byte was made (a blob that is missing, a store that refuses): nothing whole can be
  stored any more; the reservation is revoked, so that a worker clears away what there may be;
- after that, during the put: a put that timed out may still land after a deletion, so the
  reservation is left to its deadline, which the put's own deadline precedes by
  `upload_margin_seconds`;
- after the put, before the activation is recorded: as after the reservation.

Both deadlines are moved on, but only while the pack gets on: a store that has stopped taking bytes
is given up after `upload_limit_seconds`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

import structlog

from gateway.errors import BuildFailed
from gateway.packs.build import PackBuilder
from gateway.packs.flight import Deposited
from gateway.packs.plan import Counts, Plan
from gateway.packs.store_calls import store_call
from gateway.packs.stream import Made, PackStream
from gateway.together import together
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


@dataclass(slots=True, kw_only=True)
class _Keeping:
    """A reservation that is being kept, and the limit of the work that it is kept for."""

    lease: Lease
    limit: asyncio.Timeout
    stream: PackStream | None = None

    @property
    def moved(self) -> int:
        """Grows for as long as the work gets on."""
        return 0 if self.stream is None else self.stream.moved

    def move_limit(self, seconds: float) -> None:
        """Let the work go on for so long from now."""
        if not self.limit.expired():
            self.limit.reschedule(asyncio.get_running_loop().time() + seconds)


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
        self, mpack_id: str, *, repo_id: str, cache_key: str | None, plan: Plan, caller: Caller
    ) -> Lease:
        """Stand the row before the blob."""
        lease = await self._engine.lessor.reserve(
            mpack_id=mpack_id,
            kind=LeaseKind.PACK,
            repo_id=repo_id,
            cache_key=cache_key,
            size_bytes=plan.bytes_planned,
            caller=caller,
        )
        self._step(Step.LEASE_RESERVED)
        return lease

    async def store(self, plan: Plan, lease: Lease, caller: Caller) -> Made:
        """Make the pack and store it, before the reservation's deadline or not at all.

        Errors: what `PackBuilder.stream` names; StoreUnavailable; BuildFailed when the deadline has
                passed already.
        """
        stream: PackStream | None = None
        try:
            async with self._kept(lease, caller) as keeping, self._builder.stream(plan) as stream:
                keeping.stream = stream
                await self._put(lease.storage_key, stream)
                made = stream.made()
        except BaseException as error:
            if stream is None or not stream.ended:
                await self._give_up(lease, caller)
            if isinstance(error, TimeoutError):
                raise StoreUnavailable(call="put", cause="deadline") from error
            raise
        self._step(Step.PACK_PUT)
        return made

    async def _put(self, key: str, stream: PackStream) -> None:
        async with aclosing(self._told(stream)) as chunks:
            small = stream.size_bytes <= _PUT_AT_ONCE_BYTES
            data = b"".join([chunk async for chunk in chunks]) if small else chunks
            try:
                with store_call("put"):
                    await self._store.put(key, data)
            except Exception:
                # The store may have wrapped, in its words, what the stream told it.
                if stream.failure is not None:
                    raise stream.failure from None
                raise

    async def _told(self, stream: PackStream) -> AsyncGenerator[bytes, None]:
        async with aclosing(stream.chunks()) as chunks:
            async for chunk in chunks:
                yield chunk
        self._step(Step.PACK_BUILT)

    async def activate(
        self, lease: Lease, made: Made, *, counts: Counts, ttl_seconds: float, caller: Caller
    ) -> Deposited:
        """Begin the promise.

        Errors: BuildFailed (503) when the lease has ended meanwhile; the blob is deleted then.
        """
        try:
            lease = await self._engine.lessor.activate(
                lease.mpack_id,
                sha256=made.sha256,
                size_bytes=made.size_bytes,
                ttl_seconds=ttl_seconds,
                caller=caller,
            )
        except (Conflict, LeaseEnded, LeaseMissing) as refusal:
            await self._delete_own(lease, made.size_bytes, caller)
            raise BuildFailed(mpack_id=lease.mpack_id) from refusal
        self._engine.granted(lease)
        self._step(Step.LEASE_ACTIVATED)
        return Deposited(lease=lease, counts=counts)

    def _left(self, lease: Lease) -> float:
        """Seconds until a put has to end."""
        policy = self._engine.policy
        deadline = lease.delete_at - timedelta(seconds=policy.upload_margin_seconds)
        return (deadline - self._engine.database_clock.now()).total_seconds()

    @asynccontextmanager
    async def _kept(self, lease: Lease, caller: Caller) -> AsyncIterator[_Keeping]:
        """Move the reservation's deadline on for as long as the block gets on; end the block in
        time before it.
        """
        if self._left(lease) < self._engine.policy.upload_limit_seconds / 2:
            try:
                lease = await self._engine.lessor.extend(lease.mpack_id, caller=caller)
            except (Conflict, LeaseEnded, LeaseMissing) as refusal:
                raise BuildFailed(mpack_id=lease.mpack_id) from refusal
        async with asyncio.timeout(self._left(lease)) as limit, together() as tasks:
            keeping = _Keeping(lease=lease, limit=limit)
            task = tasks.create_task(self._keep(keeping, caller))
            yield keeping
            task.cancel()

    async def _keep(self, keeping: _Keeping, caller: Caller) -> None:
        half = self._engine.policy.upload_limit_seconds / 2
        moved = -1
        while True:
            await self._engine.clock.sleep(min(_LOOK_SECONDS_MAX, half / 2))
            if self._left(keeping.lease) >= half or keeping.moved == moved:
                continue
            moved = keeping.moved
            try:
                keeping.lease = await self._engine.lessor.extend(
                    keeping.lease.mpack_id, caller=caller
                )
            except Failure as failure:  # The limit stays, and ends it.
                mpack_id = keeping.lease.mpack_id
                _log.warning("reservation_not_extended", mpack_id=mpack_id, error=failure.code)
            else:
                keeping.move_limit(self._left(keeping.lease))

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
