"""`python -m tests.simulation`: see the package."""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tests.simulation.world import Outcome, run


def main(argv: Sequence[str] | None = None) -> int:
    """Run seeds, print each; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seed", type=int, help="the first seed; random when left out")
    parser.add_argument("--runs", type=int, default=10, help="so many seeds, one after the other")
    parser.add_argument("--seconds", type=float, default=600, help="simulated, in each run")
    parser.add_argument("--stop", action="store_true", help="at the first broken promise")
    parser.add_argument("--json", type=Path, help="keep what was found here")
    asked = parser.parse_args(argv)
    first = secrets.randbelow(1 << 31) if asked.seed is None else asked.seed
    outcomes = []
    for seed in range(first, first + asked.runs):
        outcome = run(seed, seconds=asked.seconds)
        outcomes.append(outcome)
        print(_line(outcome), flush=True)
        for line in (*outcome.violations[:10], *outcome.story):
            print(f"    {line}")
        if outcome.violations:
            print(f"  again: python -m tests.simulation --seed {seed} --runs 1", end="")
            print(f" --seconds {asked.seconds:g}")
            print(f"FAILED simulation::seed-{seed}:{_invariant(outcome)}", flush=True)
            if asked.stop:
                break
    summary = _summary(outcomes)
    print("\n".join(f"{name}: {value}" for name, value in summary.items()))
    if asked.json:
        kept = {**summary, "runs": [asdict(outcome) for outcome in outcomes]}
        asked.json.write_text(json.dumps(kept, indent=1) + "\n")
    return int(any(outcome.violations for outcome in outcomes))


def _line(outcome: Outcome) -> str:
    verdict = f"BROKEN {len(outcome.violations)}" if outcome.violations else "ok"
    return (
        f"seed {outcome.seed}: {verdict}, {outcome.leases:,} leases,"
        f" {sum(outcome.faults.values())} faults, {outcome.simulated_seconds:,.0f} s at"
        f" {outcome.ratio:,.0f} x, latest in calm {outcome.lateness_ms_max_calm} ms,"
        f" trace {outcome.trace_hash[:16]}"
    )


def _invariant(outcome: Outcome) -> str:
    return outcome.violations[0].split(": ")[1].partition(" ")[0]


def _summary(outcomes: Sequence[Outcome]) -> dict[str, object]:
    faults: Counter[str] = Counter()
    for outcome in outcomes:
        faults.update(outcome.faults)
    simulated = sum(outcome.simulated_seconds for outcome in outcomes)
    took = sum(outcome.real_seconds for outcome in outcomes)
    return {
        "seeds": f"{outcomes[0].seed} to {outcomes[-1].seed}",
        "broken": sum(bool(outcome.violations) for outcome in outcomes),
        "leases": sum(outcome.leases for outcome in outcomes),
        "simulated_hours": round(simulated / 3600, 2),
        "times_real_time": round(simulated / took),
        "lateness_ms_max_calm": max(outcome.lateness_ms_max_calm for outcome in outcomes),
        "faults": dict(sorted(faults.items())),
        "cpus": os.cpu_count(),
    }


if __name__ == "__main__":
    sys.exit(main())
