"""What the lease machinery tells whoever counts: the port behind the gateway's metrics.

Every method is called beside a log line or around a call, and must cost next to nothing: no I/O,
no exception. Numbers of state (how many leases, how late) are not told here; they are read from
the database, by `leases.stats`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from leases.model import Outcome, Trigger


class Observer(Protocol):
    """Counts what one process does."""

    def appended(self, types: Sequence[str]) -> None:
        """These events stand in the log now."""

    def reclaimed(self, trigger: Trigger, found: Sequence[tuple[Outcome, float]]) -> None:
        """Deletions were recorded: what each found, and how many seconds late it was."""

    def not_deleted(self, trigger: Trigger, *, failed: int, handed_back: int) -> None:
        """Deletions failed for reasons of their own, or because the store was out."""

    def circuit_opened(self, circuit: str) -> None:
        """The store counts as out for what this circuit guards."""

    def circuit_probed(self, circuit: str, *, ok: bool) -> None:
        """The store was asked whether it is there."""

    def reconciled(self, *, listed: int, adopted: int, residue_deleted: int, findings: int) -> None:
        """Store and table were compared."""

    def verified(self, problems: int) -> None:
        """The newest events of the log were verified."""

    def quota_reached(self, quota: str) -> None:
        """Somebody was refused a lease, because of this quota."""

    def task_done(self, task: str, *, ok: bool) -> None:
        """One turn of a task that runs by itself."""

    def database_call(self, seconds: float, *, ok: bool) -> None:
        """One statement, or one failure to run it."""


class NoObserver:
    """Nobody counts."""

    def appended(self, types: Sequence[str]) -> None: ...

    def reclaimed(self, trigger: Trigger, found: Sequence[tuple[Outcome, float]]) -> None: ...

    def not_deleted(self, trigger: Trigger, *, failed: int, handed_back: int) -> None: ...

    def circuit_opened(self, circuit: str) -> None: ...

    def circuit_probed(self, circuit: str, *, ok: bool) -> None: ...

    def reconciled(
        self, *, listed: int, adopted: int, residue_deleted: int, findings: int
    ) -> None: ...

    def verified(self, problems: int) -> None: ...

    def quota_reached(self, quota: str) -> None: ...

    def task_done(self, task: str, *, ok: bool) -> None: ...

    def database_call(self, seconds: float, *, ok: bool) -> None: ...


NOBODY: Observer = NoObserver()
