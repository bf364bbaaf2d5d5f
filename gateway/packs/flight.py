"""Single flight within a process: callers of one key share one task, and none of them owns it.

The task builds; what it needs from the database is read by one of the callers (a host's own session
cannot be lent to a task that outlives its caller). When that caller hangs up while reading, another
one reads. Once the plan is handed over, no caller is needed any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from gateway.packs.plan import Counts, Plan
from leases.errors import Failure, Unavailable
from leases.model import Lease


@dataclass(frozen=True, slots=True, kw_only=True)
class Deposited:
    """A pack that stands in the store under an active lease."""

    lease: Lease
    counts: Counts


class CallersGone(Unavailable):
    """Everybody who waited for this pack has hung up."""

    code = "callers_gone"


ReadPlan = Callable[[], Awaitable[Plan]]


class Flight:
    """One pack on its way, and the callers who wait for it.

    `ttl_seconds` is the longest that anybody wants; `inline_only` says that nobody wants a URL.
    """

    def __init__(self, *, cache_key: str | None, ttl_seconds: float, inline: bool) -> None:
        self.cache_key = cache_key
        self.ttl_seconds = ttl_seconds
        self.inline_only = inline
        loop = asyncio.get_running_loop()
        self.done: asyncio.Future[Deposited | None] = loop.create_future()
        self._plan: asyncio.Future[Plan] = loop.create_future()
        self._plan_wanted = False
        self._members: set[asyncio.Event] = set()
        self.done.add_done_callback(lambda _done: self._wake())

    # What the task does. -------------------------------------------------------------------------

    async def plan(self) -> Plan:
        """Ask the callers for the plan.

        Errors: CallersGone when none is left; whatever the caller who reads meets.
        """
        self._plan_wanted = True
        if not self._members:
            raise CallersGone
        self._wake()
        return await self._plan

    async def clear_away(self) -> None:
        """The task ends: free what was planned, or is being planned, for it."""
        if not self._plan.done():
            self._plan.cancel()
        elif not self._plan.cancelled() and self._plan.exception() is None:
            await self._plan.result().writer.spool.close()

    def settle(self, outcome: Deposited | BaseException | None) -> None:
        """The end: the pack, an error, or None for "look at the slot again"."""
        if self.done.done():
            return
        if isinstance(outcome, BaseException):
            self.done.set_exception(outcome)
            self.done.exception()  # Nobody may be left to ask for it.
        else:
            self.done.set_result(outcome)

    @property
    def members(self) -> int:
        """How many callers wait."""
        return len(self._members)

    # What a caller does. -------------------------------------------------------------------------

    async def join(
        self, read_plan: ReadPlan, *, ttl_seconds: float, inline: bool
    ) -> Deposited | None:
        """Wait for the end, and read the plan when the task asks and nobody else does."""
        self.ttl_seconds = max(self.ttl_seconds, ttl_seconds)
        self.inline_only = self.inline_only and inline
        woken = asyncio.Event()
        self._members.add(woken)
        try:
            while not self.done.done():
                if self._plan_wanted:
                    await self._read(read_plan)
                else:
                    await woken.wait()
                    woken.clear()
            return self.done.result()
        finally:
            self._members.discard(woken)
            if not self._members and self._plan_wanted:
                self._hand_over(CallersGone())

    async def _read(self, read_plan: ReadPlan) -> None:
        self._plan_wanted = False
        try:
            plan = await read_plan()
        except Failure as failure:
            self._hand_over(failure)
        except BaseException as error:
            if isinstance(error, Exception):
                self._hand_over(error)
            else:
                self._plan_wanted = True  # This caller hangs up; whoever else waits reads.
                self._wake()
            raise
        else:
            if not self._hand_over(plan):
                await plan.writer.spool.close()

    def _hand_over(self, found: Plan | Exception) -> bool:
        if self._plan.done():
            return False
        if isinstance(found, Exception):
            self._plan.set_exception(found)
            self._plan.exception()  # The task may have ended before it could ask.
        else:
            self._plan.set_result(found)
        return True

    def _wake(self) -> None:
        for woken in self._members:
            woken.set()
