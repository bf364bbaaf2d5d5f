"""A builder's dealings with its slot: take it, keep it, publish it or give it up.

Nothing here decides about a lease. A slot that is lost, or cannot be told about, costs a second
build and never a pack.
"""

from __future__ import annotations

import structlog

from gateway.errors import BuildsBusy
from gateway.packs.flight import Deposited
from gateway.packs.policy import PackPolicy
from gateway.packs.slots import Slot, Slots
from gateway.waiting import came
from leases.errors import Failure
from leases.ids import new_mpack_id
from leases.ports import Clock
from leases.steps import Step, Steps, no_steps

_log = structlog.get_logger(__name__)


class SlotKeeper:
    """Takes slots for the builds of this process, against those of other replicas."""

    def __init__(
        self, slots: Slots, clock: Clock, policy: PackPolicy, *, steps: Steps = no_steps
    ) -> None:
        self._slots = slots
        self._clock = clock
        self._policy = policy
        self._step = steps

    async def take(self, cache_key: str, slot: Slot | None) -> str | Slot | None:
        """Take the slot, which was `slot` a moment ago, for a new mpack_id.

        When somebody else has published another pack than stood there: the slot as it is now, if
        that was waited for here; None if not.
        Errors: the builder's own failure; BuildsBusy when it takes too long.
        """
        seen = slot.mpack_id if slot is not None and slot.published else None
        if _is_free(slot) and (mpack_id := await self._taken(cache_key, slot)) is not None:
            return mpack_id
        give_up_at = self._clock.monotonic() + self._policy.slot_wait_seconds
        # Who was seen at work a moment ago may be through before the next look.
        waited_for = set() if slot is None or slot.published else {slot.mpack_id}
        with self._slots.watch(cache_key) as watch:
            while self._clock.monotonic() < give_up_at:
                for mpack_id in waited_for & watch.failures.keys():
                    raise watch.failures[mpack_id]
                slot = await self._slots.look(cache_key)
                if slot is not None and slot.published and slot.mpack_id != seen:
                    return slot if slot.mpack_id in waited_for else None
                if _is_free(slot):
                    if (mpack_id := await self._taken(cache_key, slot)) is not None:
                        return mpack_id
                    continue
                assert slot is not None
                waited_for.add(slot.mpack_id)
                if await came(watch.changed, seconds_max=self._policy.slot_poll_seconds):
                    watch.changed.clear()
        raise BuildsBusy

    async def _taken(self, cache_key: str, slot: Slot | None) -> str | None:
        mpack_id = new_mpack_id()
        held = None if slot is None else slot.mpack_id
        if not await self._slots.take(cache_key, mpack_id, seen=held):
            return None
        self._step(Step.SLOT_TAKEN)
        return mpack_id

    async def beat(self, cache_key: str, mpack_id: str) -> None:
        """Keep the slot while building. Losing it costs a second build, not this one."""
        while True:
            await self._clock.sleep(self._policy.slot_beat_seconds)
            try:
                if not await self._slots.beat(cache_key, mpack_id):
                    _log.warning("slot_lost", mpack_id=mpack_id)
                    return
            except Failure as failure:
                _log.warning("slot_not_kept", mpack_id=mpack_id, error=failure.code)

    async def publish(self, cache_key: str, deposited: Deposited) -> None:
        """Let others share it; the pack is good for those who waited here in any case."""
        mpack_id = deposited.lease.mpack_id
        self._slots.remember(mpack_id, deposited.counts)
        try:
            if not await self._slots.publish(cache_key, mpack_id, deposited.counts):
                _log.warning("slot_lost", mpack_id=mpack_id)
        except Failure as failure:
            _log.warning("slot_not_published", mpack_id=mpack_id, error=failure.code)
        self._step(Step.SLOT_PUBLISHED)

    async def release(self, cache_key: str, mpack_id: str, failure: Failure | None) -> None:
        """Give the slot up."""
        try:
            await self._slots.release(cache_key, mpack_id, failure)
        except Failure as again:
            _log.warning("slot_not_released", mpack_id=mpack_id, error=again.code)


def _is_free(slot: Slot | None) -> bool:
    return slot is None or slot.published or slot.dead
