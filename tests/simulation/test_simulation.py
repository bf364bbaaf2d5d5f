"""The engine keeps its promises in simulated worlds, and a seed is one world."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.__main__ import main
from tests.simulation.world import Outcome, run

# Half a minute of faults needs a minute and a half of calm around it, and time to come to rest.
SECONDS = 160.0
TOP = Path(__file__).resolve().parents[2]


def check(outcome: Outcome) -> None:
    told = "\n".join((*outcome.violations, *outcome.story))
    again = f"python -m tests.simulation --seed {outcome.seed} --runs 1 --seconds {SECONDS:g}"
    assert not outcome.violations, f"{told}\n{again}"
    assert outcome.leases > 50
    assert outcome.ends == outcome.leases


@pytest.mark.parametrize("seed", [1, 6, 119])
def test_promises_are_kept_in_worlds_that_were_seen_before(seed: int) -> None:
    check(run(seed, seconds=SECONDS))


def test_promises_are_kept_in_a_world_nobody_has_seen() -> None:
    check(run(secrets.randbelow(1 << 31), seconds=SECONDS))  # A failure tells the seed.


def test_a_seed_is_the_same_run_in_any_process() -> None:
    here = run(3, seconds=60)
    script = (
        "from tests.simulation.world import run; o = run(3, seconds=60);"
        " print(o.trace_hash, o.steps)"
    )
    found = {(here.trace_hash, str(here.steps))}
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=TOP,
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found.add(tuple(done.stdout.split()))  # type: ignore[arg-type]  # it prints two words
    assert len(found) == 1


def test_other_seeds_are_other_runs() -> None:
    assert len({run(seed, seconds=20).trace_hash for seed in range(3)}) == 3


def test_the_command_prints_the_seed_and_keeps_what_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept.json"
    asked = ["--seed", "5", "--runs", "2", "--seconds", "30", "--json", str(kept)]
    assert main(asked) == 0
    told = capsys.readouterr().out
    assert "seed 5: ok" in told
    assert "seed 6: ok" in told
    assert [one["seed"] for one in json.loads(kept.read_text())["runs"]] == [5, 6]
