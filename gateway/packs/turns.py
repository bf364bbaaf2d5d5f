"""How many packs are built at once: the others wait their turn, not too many and not too long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.errors import BuildsBusy
from gateway.packs.policy import PackPolicy


class BuildTurns:
    """A semaphore with a bounded queue."""

    def __init__(self, policy: PackPolicy) -> None:
        self._policy = policy
        self._turns = asyncio.Semaphore(policy.builds_at_once)
        self.waiting = 0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Hold one of the places.

        Errors: BuildsBusy (503) when the queue is full, or the wait too long.
        """
        if self._turns.locked() and self.waiting >= self._policy.builds_waiting_max:
            raise BuildsBusy(retry_after_seconds=self._policy.build_wait_seconds)
        self.waiting += 1
        try:
            async with asyncio.timeout(self._policy.build_wait_seconds):
                await self._turns.acquire()
        except TimeoutError as error:
            raise BuildsBusy(retry_after_seconds=self._policy.build_wait_seconds) from error
        finally:
            self.waiting -= 1
        try:
            yield
        finally:
            self._turns.release()
