"""The benchmarks run and answer every figure; what the figures are is nobody's test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.__main__ import ALL
from benchmarks.figures import Figure, percentile
from benchmarks.outage import OUTAGE
from benchmarks.peers import PEERS
from benchmarks.replicas import REPLICAS_S3
from gateway.embedded_postgres import EmbeddedPostgres
from tests.rgw import check_s3_server

TOP = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_every_benchmark_runs_and_keeps_its_figures(
    postgres_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """A benchmark that nobody runs is broken when it is needed."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--results", str(tmp_path)],
        cwd=TOP,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name, benchmark in ALL.items():
        if name in (REPLICAS_S3.name, OUTAGE.name) and f"{name}: left out" in done.stdout:
            check_s3_server()
        if name == PEERS.name and f"{name}: left out" in done.stdout:
            continue  # Nothing else needs those packages, and no test is about peers.
        kept = json.loads((tmp_path / f"{name}.json").read_text())
        assert kept["figures"].keys() == benchmark.figures.keys()
        assert all(len(figure["runs"]) == 1 for figure in kept["figures"].values())
        assert {"cores", "kernel", "python", "postgres", "date"} <= kept["machine"].keys()
        assert benchmark.about in done.stdout
    assert str(tmp_path) not in "".join(path.read_text() for path in tmp_path.iterdir())


def test_kept_figures_are_of_whole_runs() -> None:
    """What the page shows must not come from a quick run."""
    kept = [json.loads(path.read_text()) for path in report.RESULTS.glob("*.json")]
    assert [result["name"] for result in kept if result["quick"]] == []


@pytest.mark.parametrize(
    "figure, runs, value, met",
    [
        (Figure(label="a", at_most=2), [1, 2, 9], 2, True),
        (Figure(label="a", at_most=2, worst=True), [1, 2, 9], 9, False),
        (Figure(label="a", at_least=3), [1, 2, 9], 2, False),
        (Figure(label="a"), [5], 5, None),
    ],
    ids=["median", "worst", "too-little", "no-target"],
)
def test_runs_become_one_figure(
    figure: Figure, runs: list[float], value: float, met: bool | None
) -> None:
    assert figure.over(runs) == value
    assert figure.met(value) is met


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = [float(number) for number in range(1, 101)]
    assert [percentile(values, percent) for percent in (50, 99, 100)] == [50, 99, 100]
    assert percentile([7.0], 99) == 7
