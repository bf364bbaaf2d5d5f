"""Callers who fetch packs that live for a second or two, for as long as a run lasts."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from gateway.client import AsyncClient
from gateway.client.errors import ClientError
from tests.fault.scene import REPO, Pushed

CALLERS = 6
TTL_SECONDS = (1.0, 3.0)
# For the gateways: half of the packs are for one caller alone, and fall due.
HALF_SHARED: Mapping[str, Any] = {"share_ttl_min_seconds": 2}
# Refusals come at once: callers do not turn into a storm.
_PAUSE_SECONDS = (0.01, 0.05)


@dataclass(slots=True, kw_only=True)
class Load:
    """What the callers got; the answer of a replica that died is nobody's failure."""

    url: str
    pushed: Pushed
    chance: random.Random
    fetches: int = 0
    refused: int = 0
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def call(self) -> None:
        """One caller, until it is over."""
        while not self.over.is_set():
            ttl_seconds = self.chance.uniform(*TTL_SECONDS)
            pause = self.chance.uniform(*_PAUSE_SECONDS)
            try:
                async with AsyncClient(f"{self.url}/{REPO}", token=self.pushed.token) as client:
                    head = self.pushed.history.head.commit_id
                    await client.fetch_mpack([head], ttl_seconds=ttl_seconds)
                    self.fetches += 1
            except (ClientError, OSError):
                self.refused += 1
            with suppress(TimeoutError):
                await asyncio.wait_for(self.over.wait(), pause)


@asynccontextmanager
async def under_load(
    url: str, pushed: Pushed, chance: random.Random, *, callers: int = CALLERS
) -> AsyncIterator[Load]:
    """So many callers at this address for the time of the block."""
    load = Load(url=url, pushed=pushed, chance=chance)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(callers):
            tasks.create_task(load.call())
        try:
            yield load
        finally:
            load.over.set()
