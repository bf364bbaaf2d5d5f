"""Crash twice: at a random point of a scenario, and again in the recovery from it.

    python -m tests.fault.crash_pairs --count 100 --seed 7 --json PATH

First every single point of every scenario, on every side; then pairs by seed, those first that the
file at PATH does not hold yet. That file keeps what was covered, from run to run.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path

from leases.clock import SystemClock
from tests.databases import cloned
from tests.fault.command import keep, run_command
from tests.fault.crash_points import CrashSite, crash_site, single_points
from tests.fault.crashing import SCENARIOS
from tests.fault.effects import Point, Side
from tests.fault.servers import own_postgres

_RECOVERY = "recover"
# A recovery has up to so many effects; a pair whose second point lies beyond ends well instead.
_RECOVERY_EFFECTS_MAX = 14


@dataclass(slots=True, kw_only=True)
class Covered:
    """What was crashed at, in all runs: points and pairs in words, with the number of times."""

    singles: dict[str, int] = field(default_factory=dict)
    pairs: dict[str, int] = field(default_factory=dict)
    not_reached: int = 0
    seed: int = 0
    seconds: float = 0.0

    @classmethod
    def load(cls, path: Path | None) -> Covered:
        if path is None or not path.exists():
            return cls()
        return cls(**json.loads(path.read_text()))

    @property
    def holds(self) -> bool:
        """What does not hold ends the run."""
        return True


async def singles(site: CrashSite, covered: Covered) -> dict[str, list[Point]]:
    """Every point of every scenario; answers them."""
    found: dict[str, list[Point]] = {}
    for scenario in SCENARIOS:
        effects = await site.effects(scenario)
        found[scenario] = single_points(effects, every=True)
        if scenario == _RECOVERY:
            continue
        for point in found[scenario]:
            effect = await site.crash(scenario, point)
            await site.recover()
            _count(covered.singles, f"{scenario}: {point.side} {point.number} {effect.name}")
    return found


async def pair(site: CrashSite, covered: Covered, first: tuple[str, Point], second: Point) -> None:
    """One crash, another in its recovery, and a recovery that nothing happens to."""
    scenario, point = first
    effect = await site.crash(scenario, point)
    again = await site.crash_if_reached(_RECOVERY, second)
    await site.recover()
    if again is None:
        covered.not_reached += 1
    name = f"{scenario}: {point.side} {point.number} {effect.name}"
    _count(covered.pairs, f"{name} | {_words(second)}")


def _words(point: Point) -> str:
    return f"{point.side} {point.number}"


def _count(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1


async def run(count: int, seed: int, path: Path | None) -> Covered:
    """All singles, then `count` pairs."""
    covered, chance, clock = Covered.load(path), random.Random(seed), SystemClock()
    covered.seed, began = seed, clock.monotonic()
    with own_postgres() as server, cloned(server) as url:
        async with crash_site(url) as site:
            points = await singles(site, covered)
            keep(covered, path)
            seconds = [
                Point(number, side)
                for number in range(1, _RECOVERY_EFFECTS_MAX + 1)
                for side in (Side.BEFORE, Side.AFTER)
            ]
            pairs = [
                ((scenario, point), second)
                for scenario in SCENARIOS
                if scenario != _RECOVERY
                for point in points[scenario]
                for second in seconds
            ]
            chance.shuffle(pairs)
            held = {name.partition(" | ")[::2] for name in covered.pairs}
            # What no run has had yet comes first; the order within is the seed's.
            pairs.sort(key=lambda one: any(_is(one, name) for name in held))
            for first, second in pairs[:count]:
                await pair(site, covered, first, second)
                keep(covered, path)
    covered.seconds = round(clock.monotonic() - began, 1)
    return covered


def _is(one: tuple[tuple[str, Point], Point], name: tuple[str, str]) -> bool:
    (scenario, point), second = one
    return name[0].startswith(f"{scenario}: {_words(point)} ") and name[1] == _words(second)


async def _run(asked: argparse.Namespace) -> Covered:
    return await run(asked.count, asked.seed, asked.json)


def main() -> int:
    """The command; a broken promise raises."""
    parser = argparse.ArgumentParser(prog="python -m tests.fault.crash_pairs")
    parser.add_argument("--count", type=int, default=100)
    return run_command(parser, _run)


if __name__ == "__main__":
    sys.exit(main())
