"""`python -m tests.nightly`: see the package."""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from leases.clock import SystemClock
from tests.nightly.parts import PARTS, Part

TOP = Path(__file__).resolve().parents[2]
_SEED_MAX = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a part ended: `ok`, `failed`, or `too long`."""

    part: str
    how: str
    seconds: float
    command: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; 1 when a part failed or took too long."""
    parser = argparse.ArgumentParser(prog="python -m tests.nightly")
    parser.add_argument("parts", nargs="*", metavar="PART", help="which ones (default: all)")
    parser.add_argument("--list", action="store_true", help="name them and do nothing")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(_SEED_MAX))
    parser.add_argument("--results", type=Path, default=TOP / "tests/results")
    asked = parser.parse_args(arguments)
    known = {part.name: part for part in PARTS}
    if unknown := set(asked.parts) - known.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if asked.list:
        for part in PARTS:
            print(f"{part.name:11} {part.about}")
        return 0
    asked.results.mkdir(parents=True, exist_ok=True)
    ended: list[Ended] = []
    print(f"seed {asked.seed}", flush=True)
    for name in asked.parts or known:
        print(f"--- {name}: {known[name].about}", flush=True)
        ended.append(_run(known[name], seed=asked.seed, results=asked.results.resolve()))
        _keep(asked.results / "nightly.json", asked.seed, ended)
    for one in ended:
        print(f"{one.part:11} {one.how:9} {one.seconds:8.1f} s")
    return int(any(one.how != "ok" for one in ended))


def _run(part: Part, *, seed: int, results: Path) -> Ended:
    command = part.filled(seed=seed, results=results)
    told = f"python -m {' '.join(command)}"
    clock = SystemClock()
    began = clock.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=TOP,
            env=os.environ
            | {"HYPOTHESIS_PROFILE": "nightly", "PYTHONPATH": str(TOP), "TEST_STORE": part.store},
            timeout=part.minutes_max * 60,
            check=False,
        )
        how = "failed" if done.returncode else "ok"
    except subprocess.TimeoutExpired:
        how = "too long"
    seconds = round(clock.monotonic() - began, 1)
    return Ended(part=part.name, how=how, seconds=seconds, command=told.replace(str(TOP), "."))


def _keep(path: Path, seed: int, ended: Sequence[Ended]) -> None:
    told = {"seed": seed, "parts": [asdict(one) for one in ended]}
    path.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
