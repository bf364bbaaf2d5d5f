"""Who gets which pack: share a living one, wait for one that is being built, or build it.

A caller looks at the slot of its cache key. A published pack with life enough is shared, its lease
renewed when it would end too early. Otherwise one task of this process takes the slot, by
compare-and-swap against all replicas, and everybody here who wants the same pack waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial

import structlog

from gateway.errors import BuildFailed, BuildsBusy, TooLarge
from gateway.packs.deposit import Deposits
from gateway.packs.flight import CallersGone, Deposited, Flight
from gateway.packs.joined import Joined
from gateway.packs.kept_bytes import KeptBytes
from gateway.packs.lacking import Lacking, Question, find_lacking
from gateway.packs.observe import NOBODY, PackObserver, SlotAnswer
from gateway.packs.plan import Counts, Plan, make_plan
from gateway.packs.policy import PackPolicy
from gateway.packs.slot_keeper import SlotKeeper
from gateway.packs.slots import Slot, Slots
from gateway.packs.splice import Snapshots
from gateway.packs.spool import Encoding, PackWriter, Spool, SpoolBudget
from gateway.packs.transaction import Reader
from gateway.packs.turns import BuildTurns
from gateway.storage.availability import Admission, Need
from gateway.wire.ids import IdForm
from leases.engine import LeaseEngine
from leases.errors import Conflict, Failure, LeaseEnded, LeaseMissing, QuotaReached, Unavailable
from leases.ids import new_mpack_id
from leases.lessor import Caller
from leases.model import Lease, LeaseState
from leases.ports import signing_end
from leases.steps import Step, Steps, no_steps

OpenReader = Callable[[], AbstractAsyncContextManager[Reader]]

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """One caller's wish for a pack; `inline` says that it wants the bytes, not a URL.

    Where the key was known beforehand, what the client lacks is found only when it is needed.
    `open_reader` lends a connection to read with, for as long as the block lasts.
    """

    question: Question
    known_lacking: Lacking | None
    cache_key: str
    form: IdForm
    encoding: Encoding
    snapshots: Snapshots
    ttl_seconds: float
    caller: Caller
    open_reader: OpenReader
    inline: bool = False

    async def lacking(self, reader: Reader) -> Lacking:
        """What the client lacks."""
        return self.known_lacking or await find_lacking(reader, self.question)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """A stored pack that a caller may use until `expires_at`."""

    lease: Lease
    expires_at: datetime
    counts: Counts | None
    shared: bool


@dataclass(slots=True)
class _Renewal:
    """Callers of this process who find the same lease too short: one renews it for all of them."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    lease: Lease | None = None
    callers: int = 0


class TooLargeInline(TooLarge):
    """This pack is too large to be answered inline."""


class PackSharing:
    """The packs on their way in this process. `tasks` owns the builds, not the callers."""

    def __init__(
        self,
        engine: LeaseEngine,
        slots: Slots,
        deposits: Deposits,
        *,
        tasks: asyncio.TaskGroup,
        policy: PackPolicy,
        budget: SpoolBudget,
        admission: Admission,
        kept: KeptBytes,
        steps: Steps = no_steps,
        observer: PackObserver = NOBODY,
    ) -> None:
        self._engine = engine
        self.slots = slots
        self._deposits = deposits
        self._policy = policy
        self._budget = budget
        self._admission = admission
        self._kept = kept
        self._step = steps
        self._observer = observer
        self._flights: dict[str, Flight] = {}
        self._looks = Joined[Slot | None]()
        self._renewals: dict[str, _Renewal] = {}
        self._keeper = SlotKeeper(slots, engine.clock, policy, steps=steps)
        self.turns = BuildTurns(policy)
        self._tasks = tasks
        self.building: set[asyncio.Task[None]] = set()

    async def shared(self, wish: Wish, *, gone: Collection[str] = ()) -> Holding:
        """A pack that others may use as well; none of `gone`, whose blobs are not there.

        One that is there already is shared also while the store is out: that calls nobody.
        Errors: whatever the build meets; BuildsBusy when it takes too long; StoreUnavailable, at
                once, when it would have to be built while the store is out; QuotaReached, before
                anything is stored.
        """
        cache_key = wish.cache_key
        give_up_at = self._engine.clock.monotonic() + self._policy.slot_wait_seconds
        while True:
            flight = self._flights.get(cache_key)
            asked = SlotAnswer.JOINED
            if flight is None:
                slot = await self._looks.ask(cache_key, partial(self.slots.look, cache_key))
                usable = slot is not None and slot.published and slot.mpack_id not in gone
                if usable and (holding := await self._hit(slot, wish)) is not None:
                    self._observer.slot_asked(SlotAnswer.HIT)
                    return holding
                # Somebody may have been quicker while this caller looked.
                if cache_key not in self._flights:
                    await self._engine.quotas.check(wish.question.repo_id)
                flight = self._flights.get(cache_key)
                if flight is None:
                    self._admission.check(Need.READING, Need.WRITING)
                    asked, flight = SlotAnswer.MISS, self._start(wish, cache_key, slot)
            self._observer.slot_asked(asked)
            try:
                deposited = await self._join(flight, wish)
            except TooLargeInline:
                if wish.inline:
                    raise
                continue  # Joined those who would have had it inline; a URL has no such limit.
            if (holding := await self._holding(deposited, wish)) is not None:
                return holding
            if self._engine.clock.monotonic() > give_up_at:
                raise BuildsBusy

    async def alone(self, wish: Wish) -> Holding:
        """A pack for this caller only: its own lease, no slot. Errors: as `shared`."""
        self._admission.check(Need.READING, Need.WRITING)
        await self._engine.quotas.check(wish.question.repo_id)
        deposited = await self._join(self._start(wish, None, None), wish)
        assert deposited is not None, "nobody else decides about this flight"
        lease, counts = deposited.lease, deposited.counts
        assert lease.expires_at is not None
        return Holding(lease=lease, expires_at=lease.expires_at, counts=counts, shared=False)

    async def stands(self, wish: Wish) -> bool:
        """Whether there is such a pack to share, or one is on its way."""
        if wish.cache_key in self._flights:
            return True
        slot = await self.slots.look(wish.cache_key)
        if slot is None or not slot.published:
            return slot is not None and not slot.dead
        return self._living(slot, wish.ttl_seconds) is not None

    def flights(self) -> list[Flight]:
        """The shared packs that are on their way now."""
        return list(self._flights.values())

    async def read_plan(self, wish: Wish) -> Plan:
        """Everything the build needs from the database, in a spool of its own."""
        spool = Spool(self._policy, self._budget)
        level = self._policy.zstd_level
        try:
            async with wish.open_reader() as reader:
                return await make_plan(
                    reader,
                    await wish.lacking(reader),
                    writer=PackWriter(spool, encoding=wish.encoding, zstd_level=level),
                    form=wish.form,
                    told=wish.snapshots,
                    pack_bytes_max=self._policy.pack_bytes_max,
                )
        except BaseException:
            await spool.close()
            raise

    # A living pack. ------------------------------------------------------------------------------

    async def _hit(self, slot: Slot | None, wish: Wish) -> Holding | None:
        """Share the slot's pack if it lives long enough, or can be made to."""
        if slot is None:
            return None
        expires_at = await self._promised(slot.now, wish)
        lease = self._living(slot, (expires_at - slot.now) / timedelta(seconds=1))
        if lease is None or self._life_end(lease) < expires_at:
            return None
        assert lease.expires_at is not None
        if lease.expires_at < expires_at:
            renewed = await self._renewed(lease, wish, expires_at)
            if renewed is None or renewed.expires_at is None or renewed.expires_at < expires_at:
                return None
            lease = renewed
        counts = self.slots.counts(lease.mpack_id)
        return Holding(lease=lease, expires_at=expires_at, counts=counts, shared=True)

    def _living(self, slot: Slot, life_seconds: float) -> Lease | None:
        """The slot's lease, if it has life enough left to be renewed to so much."""
        lease = slot.lease
        if lease is None or lease.state is not LeaseState.ACTIVE or lease.revoked_at is not None:
            return None
        assert lease.expires_at is not None
        guard = timedelta(seconds=self._engine.policy.share_guard(life_seconds))
        return lease if lease.expires_at - slot.now > guard else None

    async def _renewed(self, lease: Lease, wish: Wish, expires_at: datetime) -> Lease | None:
        """The lease as another caller has just renewed it, or renewed for this one.

        Side by side they would only make each other decide again, until some give up.
        """
        renewal = self._renewals.setdefault(lease.mpack_id, _Renewal())
        renewal.callers += 1
        try:
            async with renewal.turn:
                latest = renewal.lease
                if latest is None:  # Perhaps somebody was through with it since it was looked up.
                    latest, _now = await self._engine.lessor.load(lease.mpack_id)
                if latest is None or latest.expires_at is None or latest.expires_at < expires_at:
                    latest = await self._renew(lease, wish)
                renewal.lease = latest
                return latest
        finally:
            renewal.callers -= 1
            if not renewal.callers:
                del self._renewals[lease.mpack_id]

    async def _renew(self, lease: Lease, wish: Wish) -> Lease | None:
        ttl_seconds = wish.ttl_seconds * self._kept.renew_factor()
        try:
            renewed = await self._engine.lessor.renew(
                lease.mpack_id, ttl_seconds=ttl_seconds, caller=wish.caller
            )
        except (Conflict, LeaseEnded, LeaseMissing):
            return None
        self._engine.granted(renewed)
        self._step(Step.LEASE_RENEWED)
        return renewed

    def _life_end(self, lease: Lease) -> datetime:
        return lease.granted_at + timedelta(seconds=self._engine.policy.lease_life_max_seconds)

    async def _promised(self, since: datetime, wish: Wish) -> datetime:
        """The end of the wished TTL, or of the keys that would sign the URL."""
        wished = since + timedelta(seconds=wish.ttl_seconds)
        return min(wished, await signing_end(self._engine.store) or wished)

    async def _holding(self, deposited: Deposited | None, wish: Wish) -> Holding | None:
        """What a new pack means for one of those who waited: its own TTL, from the activation on.
        None for somebody who came too late to have a longer one considered.
        """
        if deposited is None:
            return None
        lease = deposited.lease
        assert lease.activated_at is not None
        assert lease.expires_at is not None
        own_end = await self._promised(lease.activated_at, wish)
        if lease.expires_at < min(own_end, self._life_end(lease)):
            return None
        expires_at = min(own_end, lease.expires_at)
        return Holding(lease=lease, expires_at=expires_at, counts=deposited.counts, shared=False)

    # A pack on its way. --------------------------------------------------------------------------

    async def _join(self, flight: Flight, wish: Wish) -> Deposited | None:
        return await flight.join(
            lambda: self.read_plan(wish), ttl_seconds=wish.ttl_seconds, inline=wish.inline
        )

    def _start(self, wish: Wish, cache_key: str | None, slot: Slot | None) -> Flight:
        flight = Flight(cache_key=cache_key, ttl_seconds=wish.ttl_seconds, inline=wish.inline)
        if cache_key is not None:
            self._flights[cache_key] = flight
        task = self._tasks.create_task(self._fly(flight, wish, slot))
        self.building.add(task)
        task.add_done_callback(self.building.discard)
        return flight

    async def _fly(self, flight: Flight, wish: Wish, slot: Slot | None) -> None:
        """One flight, from the slot to the published pack. Never raises but when cancelled."""
        outcome: Deposited | BaseException | None = None
        try:
            if flight.cache_key is None:
                outcome = await self._build(flight, wish, new_mpack_id())
            else:
                outcome = await self._build_for_slot(flight, wish, flight.cache_key, slot)
        except asyncio.CancelledError:
            outcome = Unavailable("The gateway is shutting down; try again shortly.")
            raise
        except Failure as failure:
            outcome = failure
        except Exception as error:  # noqa: BLE001  it belongs to those who wait
            _log.exception("build_failed", repo_id=wish.question.repo_id)
            outcome = error
        finally:
            # First forget the flight: who is told to look again must not find it.
            if flight.cache_key is not None:
                del self._flights[flight.cache_key]
            flight.settle(outcome)
            await flight.clear_away()

    async def _build_for_slot(
        self, flight: Flight, wish: Wish, cache_key: str, slot: Slot | None
    ) -> Deposited | None:
        mpack_id = await self._keeper.take(cache_key, slot)
        if not isinstance(mpack_id, str):
            return self._waited_for(mpack_id)
        beating = self._tasks.create_task(self._keeper.beat(cache_key, mpack_id))
        try:
            deposited = await self._build(flight, wish, mpack_id)
        except BaseException as error:
            await self._keeper.release(cache_key, mpack_id, _told_to_others(error))
            raise
        finally:
            beating.cancel()
        await self._keeper.publish(cache_key, deposited)
        return deposited

    def _waited_for(self, slot: Slot | None) -> Deposited | None:
        """A pack that another replica has just built is that of those who waited here, too."""
        lease = None if slot is None else slot.lease
        if lease is None or lease.state is not LeaseState.ACTIVE or lease.revoked_at is not None:
            return None
        counts = self.slots.counts(lease.mpack_id)
        return None if counts is None else Deposited(lease=lease, counts=counts)

    async def _build(self, flight: Flight, wish: Wish, mpack_id: str) -> Deposited:
        async with self.turns.turn():
            with self._admission.turn(Need.READING, Need.WRITING):
                return await self._build_admitted(flight, wish, mpack_id)

    async def _build_admitted(self, flight: Flight, wish: Wish, mpack_id: str) -> Deposited:
        began = self._engine.clock.monotonic()
        try:
            async with asyncio.timeout(self._policy.plan_seconds_max):
                plan = await flight.plan()
        except TimeoutError as error:
            raise BuildFailed("Planning this pack took too long.") from error
        if flight.inline_only:
            check_inline(plan.bytes_planned, self._policy)
        wanted = {mpack_id: plan.bytes_planned}
        async with self._engine.quotas.room(wish.question.repo_id, wanted):
            deposited = await self._deposit(flight, wish, mpack_id, plan)
        self._observer.built(
            size_bytes=deposited.lease.size_bytes or 0,
            seconds=self._engine.clock.monotonic() - began,
        )
        return deposited

    async def _deposit(self, flight: Flight, wish: Wish, mpack_id: str, plan: Plan) -> Deposited:
        lease = await self._deposits.reserve(
            mpack_id,
            repo_id=wish.question.repo_id,
            cache_key=flight.cache_key,
            plan=plan,
            caller=wish.caller,
        )
        made = await self._deposits.store(plan, lease, wish.caller)
        return await self._deposits.activate(
            lease,
            made,
            counts=plan.counts,
            ttl_seconds=flight.ttl_seconds,
            caller=wish.caller,
        )


def check_inline(size_bytes: int, policy: PackPolicy) -> None:
    """Refuse what is too large to be answered inline.

    Errors: TooLarge (413) with what to do instead.
    """
    if size_bytes > policy.inline_bytes_max:
        raise TooLargeInline(
            f"This pack is over {policy.inline_bytes_max:,} bytes, too large to be answered inline:"
            " fetch it by URL (POST fetch/mpack), or fetch fewer commits at once."
        )


def _told_to_others(error: BaseException) -> Failure | None:
    """Why a builder gives up, for those who wait in other replicas. That this process stops, that
    its callers hang up or cannot take a pack of this size, or that it has had its share of the
    room, says nothing about the pack: then somebody else who waits builds it.
    """
    silent = CallersGone | TooLargeInline | QuotaReached | asyncio.CancelledError
    if isinstance(error, silent):
        return None
    return error if isinstance(error, Failure) else BuildFailed()
