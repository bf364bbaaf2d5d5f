"""Wires between replicas, database and store: slow, cut, losing answers, delivering late."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from leases.errors import DatabaseUnavailable
from tests.simulation.ledger import SimulatedSession
from tests.simulation.loop import SimulatedLoop
from tests.simulation.trace import Trace

T = TypeVar("T")

# A statement of ours that hears nothing is given up by then (leases.database).
_SILENCE_SECONDS_MAX = 30.0
# A server that is asked and not waited for may still do it: a lock may be waited for so long.
_LATE_SECONDS_MAX = 2.0
_HANG_RATIO = 0.3
_KEPT_SECONDS_MAX = 10.0


@dataclass(slots=True)
class Weather:
    """What goes wrong on the way to one service now; `cut` names the replicas it is cut from."""

    down: bool = False
    slow_seconds: float = 0.0
    flaky_ratio: float = 0.0
    cut: set[str] = field(default_factory=set)

    def unreachable(self, replica: str) -> bool:
        return self.down or replica in self.cut


def latency(chance: random.Random, weather: Weather) -> float:
    """One way: a millisecond, now and then a lot more."""
    seconds = chance.uniform(0.0002, 0.002)
    if chance.random() < 0.01:
        seconds += chance.uniform(0, 0.05)
    if weather.slow_seconds:
        seconds += chance.uniform(0, weather.slow_seconds)
    return seconds


class DatabaseWire:
    """One replica's way to the database."""

    def __init__(
        self,
        replica: str,
        *,
        loop: SimulatedLoop,
        chance: random.Random,
        weather: Weather,
        trace: Trace,
    ) -> None:
        self._replica = replica
        self._loop = loop
        self._chance = chance
        self._weather = weather
        self._trace = trace
        self.sessions: list[SimulatedSession] = []

    def opened(self, session: SimulatedSession) -> None:
        self.sessions = [one for one in self.sessions if one.is_open] + [session]

    def ended(self, session: SimulatedSession) -> None:
        """A server that the end of a socket does not reach keeps it for alive a while."""
        cut = self._weather.unreachable(self._replica)
        delay = self._chance.uniform(1, _KEPT_SECONDS_MAX) if cut else 0.001
        self._loop.call_later(delay, session.freed, context=self._loop.world.context)

    async def call(self, name: str, work: Callable[[], T]) -> T:
        chance, weather = self._chance, self._weather
        await asyncio.sleep(latency(chance, weather))
        if weather.unreachable(self._replica):
            raise await self._silence(name)
        trouble = chance.random() if chance.random() < weather.flaky_ratio else None
        if trouble is not None and trouble < 0.3:
            self._trace(self._replica, f"db {name}: not delivered")
            raise DatabaseUnavailable(cause="not delivered")
        if trouble is not None and trouble < 0.5 and name == "append":
            self._later(name, work)
            await asyncio.sleep(chance.uniform(0, 0.5))
            raise DatabaseUnavailable(cause="no answer")
        answer = work()
        self._trace(self._replica, f"db {name}{_said(answer)}")
        await asyncio.sleep(latency(chance, weather))
        if trouble is not None or weather.unreachable(self._replica):
            self._trace(self._replica, f"db {name}: its answer is lost")
            raise DatabaseUnavailable(cause="answer lost")
        return answer

    def _later(self, name: str, work: Callable[[], Any]) -> None:
        def done() -> None:
            self._trace(self._replica, f"db {name} done late{_said(work())}")

        delay = self._chance.uniform(0, _LATE_SECONDS_MAX)
        self._loop.call_later(delay, done, context=self._loop.world.context)

    async def _silence(self, name: str) -> DatabaseUnavailable:
        """A refused connection is known at once, a lost packet never."""
        seconds = self._chance.uniform(0.001, 1)
        if not self._weather.down and self._chance.random() < _HANG_RATIO:
            seconds = _SILENCE_SECONDS_MAX
        given_up_at = self._loop.time() + seconds
        while self._loop.time() < given_up_at and self._weather.unreachable(self._replica):  # noqa: ASYNC110  nobody announces the weather
            await asyncio.sleep(min(0.5, given_up_at - self._loop.time()))
        self._trace(self._replica, f"db {name}: out of reach")
        return DatabaseUnavailable(cause="out of reach")


def _said(answer: Any) -> str:
    """What an answer says, in a few words."""
    if isinstance(answer, dict) and "verdicts" in answer:
        return f" {'+'.join(answer['verdicts'])} @{answer['positions'][0]}"
    if isinstance(answer, int):
        return f" {answer}"
    if isinstance(answer, list | dict | set):
        return f" {len(answer)}"
    if isinstance(answer, tuple) and isinstance(answer[0], int):
        return f" {answer[0]}"
    return ""
