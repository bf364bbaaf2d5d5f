"""What a benchmark ran on, without names or places."""

from __future__ import annotations

import os
import platform
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.figures import percentile

_LIBRARIES = ("asyncpg", "sqlalchemy", "uvloop")


def facts(folder: Path, *, postgres_version: str) -> dict[str, Any]:
    """What a reader needs to compare figures; `folder` is where the data of the benchmark lies."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cores": os.cpu_count(),
        "processor": _first(Path("/proc/cpuinfo"), "model name"),
        "memory_gib": round(_kib(Path("/proc/meminfo"), "MemTotal") / (1 << 20)),
        "kernel": platform.release(),
        "file_system": _file_system(folder),
        "fsync_ms_p50": round(_fsync_ms(folder), 3),
        "loop_ms": round(_loop_ms(), 1),
        "python": platform.python_version(),
        "postgres": postgres_version,
        "load_before": round(os.getloadavg()[0], 2),
    } | {name: version(name) for name in _LIBRARIES}


def _first(path: Path, name: str) -> str:
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "unknown"


def _kib(path: Path, name: str) -> int:
    return int(_first(path, name).split()[0])


def _file_system(folder: Path) -> str:
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    inside = [(len(at), kind) for at, kind in mounts if folder.is_relative_to(at)]
    return max(inside, default=(0, "unknown"))[1]


def _fsync_ms(folder: Path) -> float:
    """What it costs here to bring 4 KiB to the disk."""
    path = folder / "fsync"
    taken = []
    with path.open("wb", buffering=0) as file:
        for _ in range(200):
            began = time.perf_counter()
            file.write(bytes(4096))
            os.fsync(file.fileno())
            taken.append((time.perf_counter() - began) * 1000)
    path.unlink()
    return percentile(taken, 50)


def _loop_ms() -> float:
    """A million turns of a plain loop: how fast one core is today, at its best of several."""
    taken = []
    for _ in range(10):
        began = time.perf_counter()
        total = 0
        for number in range(1_000_000):
            total += number
        taken.append((time.perf_counter() - began) * 1000)
    return min(taken)
