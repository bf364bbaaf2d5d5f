"""What this process and PostgreSQL's use, from /proc. 100 % is one core."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from benchmarks.place import Home

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Processor time so far, or between two moments; all in seconds."""

    passed: float
    process: float
    postgres: float

    @classmethod
    def now(cls, home: Home) -> Self:
        """Up to now."""
        return cls(
            passed=time.perf_counter(),
            process=time.process_time(),
            postgres=_server_seconds(home.server_pid),
        )

    def since(self, before: Usage) -> Usage:
        """From then to this."""
        return Usage(
            passed=self.passed - before.passed,
            process=self.process - before.process,
            postgres=self.postgres - before.postgres,
        )

    @property
    def process_percent(self) -> float:
        """How much of a core this process kept busy."""
        return 100 * self.process / self.passed

    @property
    def postgres_percent(self) -> float:
        """How much of a core the server kept busy."""
        return 100 * self.postgres / self.passed


def _server_seconds(server_pid: int) -> float:
    """Of the server, its children, and those that have ended and that it has waited for."""
    children = Path(f"/proc/{server_pid}/task/{server_pid}/children").read_text().split()
    ticks = _ticks(f"/proc/{server_pid}/stat", fields=4)
    return (ticks + sum(_ticks(f"/proc/{pid}/stat", fields=2) for pid in children)) / _TICKS


def process_seconds(pid: int) -> float:
    """Processor time of another process, without its children's."""
    return _ticks(f"/proc/{pid}/stat", fields=2) / _TICKS


def children_seconds(pid: int) -> float:
    """Processor time of the ended children that a process has waited for, and of theirs."""
    path = f"/proc/{pid}/stat"
    return (_ticks(path, fields=4) - _ticks(path, fields=2)) / _TICKS


def server_seconds(home: Home) -> float:
    """Processor time of PostgreSQL: all of its processes, the ended ones too."""
    return _server_seconds(home.server_pid)


def _ticks(path: str, *, fields: int) -> int:
    """User and system time; with four fields those of ended children as well."""
    try:
        told = Path(path).read_text()
    except OSError:  # It has just ended.
        return 0
    # The name stands in brackets and may hold anything.
    return sum(int(text) for text in told.rpartition(")")[2].split()[11 : 11 + fields])


def memory_bytes(pid: int | None = None) -> int:
    """What this process, or another one, holds in memory now."""
    return _status_bytes("VmRSS", pid or os.getpid())


def memory_bytes_peak(pid: int | None = None) -> int:
    """The most it held since `forget_memory_peak`; or another process since its start."""
    return _status_bytes("VmHWM", pid or os.getpid())


def forget_memory_peak(pid: int | None = None) -> None:
    """Begin to look for the peak anew, in this process or another one."""
    Path(f"/proc/{pid or os.getpid()}/clear_refs").write_text("5")


def _status_bytes(name: str, pid: int) -> int:
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return next(int(words[1]) * 1024 for words in lines if words[0] == f"{name}:")
