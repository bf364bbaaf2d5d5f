"""The parts of a night: each a command, and how long it may take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """`command` follows `python -m`; `{seed}`, `{out}` and `{results}` are filled in."""

    name: str
    about: str
    command: Sequence[str]
    minutes_max: int
    store: str = "local"  # Or "s3": a real server that the part starts.

    def filled(self, *, seed: int, results: Path) -> list[str]:
        """The command of this night."""
        values = {
            "{seed}": str(seed),
            "{out}": str(results / f"{self.name}.json"),
            "{results}": str(results),
        }
        return [values.get(word, word) for word in self.command]


PARTS = (
    Part(
        name="properties",
        about="the laws and the machines of tests/property, many more examples",
        command=("pytest", "-q", "--no-header", "--timeout", "3600", "tests/property"),
        minutes_max=120,
    ),
    Part(
        name="crashes",
        about="every crash point on every side, and pairs of them by seed",
        command=(
            *("tests.fault.crash_pairs", "--count", "200", "--seed", "{seed}"),
            *("--json", "{out}"),
        ),
        minutes_max=60,
    ),
    Part(
        name="crashes-s3",
        about="the same on a real S3 server",
        command=(
            *("tests.fault.crash_pairs", "--count", "100", "--seed", "{seed}"),
            *("--json", "{out}"),
        ),
        minutes_max=60,
        store="s3",
    ),
    Part(
        name="kills",
        about="a hundred kill -9 at random moments over three replicas under load",
        command=("tests.fault.kills", "--count", "100", "--seed", "{seed}", "--json", "{out}"),
        minutes_max=60,
    ),
    Part(
        name="pauses",
        about="a replica that is stopped for five minutes while it holds claims",
        command=("tests.fault.pauses", "--seconds", "300", "--seed", "{seed}", "--json", "{out}"),
        minutes_max=20,
    ),
    Part(
        name="feed",
        about="readers of the log's feed for ten minutes of kill -9 and cut notifications",
        command=("tests.fault.feed", "--minutes", "10", "--seed", "{seed}", "--json", "{out}"),
        minutes_max=20,
    ),
    Part(
        name="simulation",
        about="a thousand simulated worlds of ten minutes, with faults of every kind",
        command=("tests.simulation", "--seed", "{seed}", "--runs", "1000", "--json", "{out}"),
        minutes_max=240,
    ),
    Part(
        name="planted",
        about="every planted bug, until a layer of tests finds it",
        command=("tests.planted", "--json", "{out}"),
        minutes_max=120,
    ),
    Part(
        name="fuzz",
        about="a million bodies over all routes",
        command=("tests.fuzz", "--seed", "{seed}", "--count", "1000000", "--json", "{out}"),
        minutes_max=240,
    ),
    Part(
        name="outage",
        about="a store that is out while leases fall due",
        command=("benchmarks", "outage", "--results", "{results}"),
        minutes_max=30,
    ),
)
