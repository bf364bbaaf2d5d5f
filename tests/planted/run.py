"""Plant one bug in a copy of the tree, and run the layers until one finds it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from leases.clock import SystemClock
from tests.planted.bugs import Bug
from tests.planted.layers import Layer, layers_for

TOP = Path(__file__).resolve().parents[2]
_COPIED = ("gateway", "leases", "schema", "tests", "benchmarks", "deploy", "pyproject.toml")
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)
# Interrupted, nothing collected, wrong usage: no verdict about a bug.
_NO_VERDICT = (2, 3, 4, 5)


@dataclass(slots=True, kw_only=True)
class Found:
    """What came of a bug: who found it, who was asked before, and how long it took; and what
    layers said that were asked by themselves: the test that failed, or None.
    """

    bug: str
    passed: list[str] = field(default_factory=list)
    layer: str | None = None
    test: str | None = None
    seconds: float = 0.0
    alone: dict[str, str | None] = field(default_factory=dict)

    @property
    def first(self) -> str | None:
        """The first test that failed."""
        return self.test or next((test for test in self.alone.values() if test), None)

    def says(self, layer: str) -> bool | None:
        """Whether this layer found it; None where it was not asked."""
        if layer == self.layer or self.alone.get(layer):
            return True
        return False if layer in self.passed or layer in self.alone else None


@contextmanager
def copied_tree() -> Iterator[Path]:
    """A copy of the tree, to be spoilt."""
    with tempfile.TemporaryDirectory(prefix="mpg-planted-") as place:
        for name in _COPIED:
            source, target = TOP / name, Path(place) / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
        yield Path(place)


@contextmanager
def planted(bug: Bug, tree: Path) -> Iterator[None]:
    """The bug is in the tree for the time of the block."""
    path = tree / bug.path
    text = path.read_text()
    try:
        _write(path, bug.planted_in(text))
        yield
    finally:
        _write(path, text)


def ask(bug: Bug, tree: Path, name: str) -> str | None:
    """What this layer says by itself: the first test that fails, or None."""
    (layer,) = (layer for layer in layers_for(bug) if layer.name == name)
    with planted(bug, tree):
        return _failed_in(layer, tree)


def hunt(bug: Bug, tree: Path) -> Found:
    """Run the layers until one fails."""
    clock = SystemClock()
    found, began = Found(bug=bug.name), clock.monotonic()
    with planted(bug, tree):
        for layer in layers_for(bug):
            if not _paths(layer, tree):
                continue  # Not built yet: it has no word in this.
            failed = _failed_in(layer, tree)
            if failed is not None:
                found.layer, found.test = layer.name, failed
                break
            found.passed.append(layer.name)
    found.seconds = round(clock.monotonic() - began, 1)
    return found


def _failed_in(layer: Layer, tree: Path) -> str | None:
    """The first test of the layer that failed; None when all passed."""
    options = [part for part in layer.command if not part.startswith("tests/")]
    command = options + [part for part in _paths(layer, tree) if part not in options]
    environment = os.environ | {"PYTHONPATH": str(tree), "HYPOTHESIS_PROFILE": "ci"}
    try:
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=tree,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=layer.seconds_max,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "(it never ended)"
    if done.returncode == 0:
        return None
    told = _FAILED.search(done.stdout)
    if done.returncode in _NO_VERDICT and told is None:
        raise RuntimeError(f"{' '.join(command)} could not run:\n{done.stdout[-3000:]}")
    return told.group(1) if told else "(it failed)"


def _paths(layer: Layer, tree: Path) -> Sequence[str]:
    """What of the layer is there; the command itself where it names no file."""
    paths = [part for part in layer.command if part.startswith("tests/")]
    return [part for part in paths if (tree / part).exists()] if paths else layer.command


def _write(path: Path, text: str) -> None:
    """Write, and forget what was compiled: an edit of the same second may keep the size."""
    path.write_text(text)
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        compiled.unlink()
