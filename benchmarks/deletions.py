"""Deletions as somebody outside of the lease machinery sees them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence

from benchmarks.database_time import DatabaseTime
from benchmarks.figures import percentile
from gateway.service import Service
from leases.errors import Failure
from leases.ports import DeleteOutcome

_WAIT_SECONDS = 60.0  # Longer means that something is broken, not slow.


class Deletions:
    """Stands before a store's `delete_many` and notes when each key was sent and was gone."""

    def __init__(self) -> None:
        self.sent: dict[str, float] = {}
        self.gone: dict[str, float] = {}
        self.keys_sent = 0
        self._changed = asyncio.Event()

    def watch(self, service: Service) -> None:
        """Look at every deletion of this service from now on."""
        delete_many = service.store.delete_many

        async def noted(keys: Sequence[str]) -> Mapping[str, DeleteOutcome | Exception]:
            sent = time.monotonic()
            self.keys_sent += len(keys)
            outcomes = await delete_many(keys)
            gone = time.monotonic()
            for key, outcome in outcomes.items():
                if not isinstance(outcome, Failure):
                    self.sent.setdefault(key, sent)
                    self.gone[key] = gone
            self._changed.set()
            return outcomes

        service.store.delete_many = noted  # type: ignore[method-assign]  # it looks on, no more

    async def wait_for(self, keys: Collection[str]) -> None:
        """Return when all of these are gone."""
        missing = set(keys)
        async with asyncio.timeout(_WAIT_SECONDS):
            while missing := missing - self.gone.keys():
                self._changed.clear()
                await self._changed.wait()

    def add(self, other: Deletions) -> None:
        """What another process of this machine saw."""
        for key, sent in other.sent.items():
            self.sent[key] = min(sent, self.sent.get(key, sent))
        for key, gone in other.gone.items():
            self.gone[key] = max(gone, self.gone.get(key, gone))
        self.keys_sent += other.keys_sent

    def against(
        self, due: Mapping[str, float], clock: DatabaseTime, prefix: str
    ) -> dict[str, float]:
        """How late these were, in milliseconds; how many were sent before their deadline."""
        late = [(clock.at(self.gone[key]) - deadline) * 1000 for key, deadline in due.items()]
        early = sum(clock.at(self.sent[key]) < deadline for key, deadline in due.items())
        return {
            f"{prefix}expiries": len(late),
            f"{prefix}p50_ms": percentile(late, 50),
            f"{prefix}p99_ms": percentile(late, 99),
            f"{prefix}max_ms": max(late),
            f"{prefix}early": early,
        }
