"""Ending whatever PostgreSQL still runs in a data folder, whoever started it.

Which processes those are is read from their working folder: PostgreSQL's stay in the data folder
all their life. A process id in a file alone may by now be somebody else's.
"""

from __future__ import annotations

import os
import select
import signal
import time
from pathlib import Path

from leases.errors import Unavailable

# Fast shutdown (writes one checkpoint), immediate shutdown, the end; seconds given to each.
ENDINGS = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 10.0))


def end_processes(data: Path) -> None:
    """End every process of this data folder and wait until they are gone.

    Effects: removes a lock file whose owner is gone while its number is still taken, by a zombie
    that nobody waits for or by a stranger; PostgreSQL would refuse to start beside it.
    """
    pid_file = data / "postmaster.pid"
    recorded = _recorded_pid(pid_file)
    for sign, seconds in ENDINGS:
        running = processes_in(data)
        # The postmaster ends its children itself; only orphans are told one by one.
        told = [recorded] if recorded in running else running
        if _all_ended(running, told=told, sign=sign, seconds=seconds):
            break
    else:
        raise Unavailable(f"An earlier PostgreSQL in {data} does not end.")
    if recorded is not None and Path(f"/proc/{recorded}").exists():
        pid_file.unlink(missing_ok=True)


def _recorded_pid(pid_file: Path) -> int | None:
    try:
        first = pid_file.read_text().partition("\n")[0]
    except FileNotFoundError:
        return None
    return int(first) if first.isdecimal() else None


def processes_in(data: Path) -> list[int]:
    """The processes that work in this folder; a zombie works nowhere."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cwd").readlink() == data:
                found.append(int(entry.name))
        except OSError:  # It has just ended, or it is another user's.
            continue
    return found


def _all_ended(
    running: list[int], *, told: list[int], sign: signal.Signals, seconds: float
) -> bool:
    """Signal those `told` and wait for all; a pidfd names one process and no later one."""
    deadline = time.monotonic() + seconds
    for pid in running:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            if pid in told:
                _send(handle, sign)
            left_ms = max(0.0, deadline - time.monotonic()) * 1000
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            if not poll.poll(left_ms):
                return False
        finally:
            os.close(handle)
    return True


def _send(handle: int, sign: signal.Signals) -> None:
    try:
        signal.pidfd_send_signal(handle, sign)
    except ProcessLookupError:
        return
