"""Callers who do the same thing again and again, each when its last turn is over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from benchmarks.figures import percentile

Turn = Callable[[int], Awaitable[object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What came of it."""

    per_second: float
    taken_ms: list[float]

    def percentile_ms(self, percent: float) -> float:
        """How long a turn took."""
        return percentile(self.taken_ms, percent)


async def load(callers: int, seconds: float, turn: Turn) -> Load:
    """Let so many callers take turns for so long; `turn` is told which caller it is."""
    taken_ms: list[float] = []
    began = time.perf_counter()

    async def call(caller: int) -> None:
        while (asked := time.perf_counter()) < began + seconds:
            await turn(caller)
            taken_ms.append((time.perf_counter() - asked) * 1000)

    async with asyncio.TaskGroup() as group:
        for caller in range(callers):
            group.create_task(call(caller))
    return Load(per_second=len(taken_ms) / (time.perf_counter() - began), taken_ms=taken_ms)
