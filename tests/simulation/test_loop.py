"""Processes on simulated time: paused, killed, each with clocks of its own."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Iterator
from datetime import timedelta
from typing import Any

import pytest

from tests.simulation.clocks import SimulatedClock, SimulatedTimer
from tests.simulation.loop import Process, SimulatedLoop


@pytest.fixture
def loop() -> Iterator[SimulatedLoop]:
    loop = SimulatedLoop(random.Random(1))
    yield loop
    loop.close()


def run(loop: SimulatedLoop, work: Coroutine[Any, Any, None]) -> None:
    loop.run_until_complete(loop.start(loop.world, work))


async def ticks(loop: SimulatedLoop, heard: list[float]) -> None:
    for _ in range(10):
        await asyncio.sleep(1)
        heard.append(loop.time())


def test_time_passes_only_when_everybody_waits(loop: SimulatedLoop) -> None:
    heard: list[float] = []
    run(loop, ticks(loop, heard))
    assert heard == [float(second) for second in range(1, 11)]


def test_a_paused_process_does_later_what_fell_due(loop: SimulatedLoop) -> None:
    heard: list[float] = []
    process = Process("r1")
    loop.processes.append(process)

    async def world() -> None:
        task = loop.start(process, ticks(loop, heard))
        await asyncio.sleep(2.5)
        process.runs = False
        await asyncio.sleep(5)
        process.runs = True
        await task

    run(loop, world())
    assert heard == [1.0, 2.0, 7.5, 8.5, 9.5, 10.5, 11.5, 12.5, 13.5, 14.5]


def test_a_killed_process_does_nothing_any_more(loop: SimulatedLoop) -> None:
    heard: list[float] = []
    process = Process("r1")
    loop.processes.append(process)

    async def world() -> None:
        task = loop.start(process, ticks(loop, heard))
        await asyncio.sleep(2.5)
        loop.processes.remove(process)
        process.runs = False
        await asyncio.sleep(5)
        assert not task.done()
        assert process.pending() == [task]
        loop.processes.append(process)  # Its remains are put away.
        process.runs = True
        task.cancel()
        await asyncio.wait([task])

    run(loop, world())
    assert heard == [1.0, 2.0]


def test_within_a_process_callbacks_keep_their_order(loop: SimulatedLoop) -> None:
    order: dict[str, list[int]] = {"r1": [], "r2": []}
    mixed: list[str] = []

    async def many(name: str) -> None:
        def note(number: int) -> None:
            order[name].append(number)
            mixed.append(name)

        for number in range(20):
            loop.call_soon(note, number)
        await asyncio.sleep(1)

    async def world() -> None:
        processes = [Process(name) for name in order]
        loop.processes += processes
        await asyncio.gather(*(loop.start(one, many(one.name)) for one in processes))

    run(loop, world())
    assert order == {"r1": list(range(20)), "r2": list(range(20))}
    assert mixed not in (sorted(mixed), sorted(mixed, reverse=True))


@pytest.mark.parametrize(
    "jump_seconds, fired_at", [(-4, 14), (4, 10), (0, 10)], ids=["back", "forward", "right"]
)
def test_a_timer_goes_by_the_wall_clock_when_it_wakes(
    loop: SimulatedLoop, jump_seconds: int, fired_at: int
) -> None:
    fired: list[float] = []

    async def world() -> None:
        clock = SimulatedClock(loop)
        timer = SimulatedTimer(clock)
        timer.start()
        timer.set(clock.now() + timedelta(seconds=10), lambda: fired.append(loop.time()))
        await asyncio.sleep(5)
        clock.shift = timedelta(seconds=jump_seconds)
        await asyncio.sleep(20)
        timer.stop()

    run(loop, world())
    assert fired == [pytest.approx(fired_at, abs=0.001)]
