"""How the leases stand, in one look at the open ones: for `stats`, metrics and alerts.

Closed leases are not counted: there may be a hundred million of them, and what they were is
counted as it happens. The open ones are read once, by the partial index where they are few.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from leases.claims import DUE
from leases.database import Database
from leases.instance import LIVE_INSTANCES
from leases.pause import PAUSE_COLUMNS, PAUSE_SOURCE

# A lease that nobody has claimed for so long after it fell due is not being done: ten times the
# look-ahead, and several times what a take-over after kill -9 needs.
UNATTENDED_SECONDS = 5.0

_BYTES = "COALESCE(sum(size_bytes), 0)::bigint"
_OPEN = "mpack_leases WHERE state <> 'reclaimed'"
_BYTES_HELD = f"SELECT {_BYTES} AS bytes_held FROM {_OPEN}"
_STATS = f"""
SELECT leases.*, head.position AS head_position, head.log_id,
       cardinality({LIVE_INSTANCES}) AS replicas, pause.*
FROM (
    SELECT count(*) FILTER (WHERE state = 'reserved') AS reserved,
           count(*) FILTER (WHERE state = 'active') AS active,
           count(*) FILTER (WHERE stuck) AS stuck,
           count(*) FILTER (WHERE delete_at <= statement_timestamp()) AS overdue,
           count(*) FILTER (WHERE attempts = 0 AND next_attempt_at IS NOT NULL) AS put_off,
           count(*) FILTER (WHERE claimed_until > statement_timestamp()) AS claimed,
           count(*) FILTER (WHERE {DUE} <= statement_timestamp()
                            - make_interval(secs => $1)) AS unattended,
           COALESCE(extract(epoch FROM statement_timestamp() - min(delete_at)), 0)::float8
               AS oldest_overdue_seconds,
           {_BYTES} AS bytes_held
    FROM {_OPEN}) AS leases,
    event_head AS head,
    (SELECT {PAUSE_COLUMNS} FROM {PAUSE_SOURCE}) AS pause
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """What `read_stats` saw.

    `overdue`: open and past `delete_at`, stuck ones included. `unattended`: due for more than
    five seconds, and neither claimed nor waiting for its next attempt. `replicas`: processes that
    hold their session lock, running commands included. `mark_problem`: what the store's mark says
    against this log, if somebody has asked the store; every replica pauses for it.
    """

    by_state: Mapping[str, int]
    overdue: int
    oldest_overdue_seconds: float
    unattended: int
    put_off: int
    claimed: int
    stuck: int
    bytes_held: int
    head_position: int
    log_id: str
    replicas: int
    paused: bool
    paused_by: str | None
    paused_at: datetime | None
    pause_reason: str | None
    mark_problem: str | None = None

    @property
    def is_not_done(self) -> bool:
        """Whether work is overdue and nobody does it."""
        return self.unattended > 0 and self.claimed == 0

    def in_words(self) -> str:
        """What somebody on call needs, in a sentence or two."""
        words = self._overdue_in_words()
        if self.mark_problem and not self.is_not_done:
            return f"{words} Reaping is paused: {self.mark_problem}."
        return words

    def _overdue_in_words(self) -> str:
        if not self.overdue:
            return "Nothing is overdue."
        leases = "1 lease is" if self.overdue == 1 else f"{self.overdue:,} leases are"
        late = f"the oldest for {self.oldest_overdue_seconds:,.0f} s"
        if not self.is_not_done:
            notes = f"; {self.put_off:,} put off: the store did not answer" if self.put_off else ""
            if self.stuck:
                notes += f"; {self.stuck:,} stuck: `mpack-gateway lease list --state stuck`"
            return f"{leases} overdue and being done, {late}{notes}."
        if self.paused:
            why = f"reaping is paused by {self.paused_by}: {self.pause_reason}"
        elif self.mark_problem:
            why = f"reaping is paused: {self.mark_problem}"
        elif not self.replicas:
            why = "no replica is running"
        elif self.put_off:
            why = "the store did not answer, and is probed until it does"
        else:
            why = "`mpack-gateway doctor` looks for the cause"
        return f"{leases} overdue and not being done, {late}; {why}."


async def read_stats(database: Database) -> Stats:
    """One statement; half a second at a million open leases. Errors: DatabaseUnavailable."""
    row = await database.row(_STATS, UNATTENDED_SECONDS)
    return Stats(
        by_state={state: row[state] for state in ("reserved", "active")},
        overdue=row["overdue"],
        oldest_overdue_seconds=max(0.0, row["oldest_overdue_seconds"]),
        unattended=row["unattended"],
        put_off=row["put_off"],
        claimed=row["claimed"],
        stuck=row["stuck"],
        bytes_held=row["bytes_held"],
        head_position=row["head_position"],
        log_id=str(row["log_id"]),
        replicas=row["replicas"],
        paused=row["paused"],
        paused_by=row["paused_by"] if row["paused"] else None,
        paused_at=row["paused_at"] if row["paused"] else None,
        pause_reason=row["pause_reason"] if row["paused"] else None,
    )


async def read_bytes_held(database: Database) -> int:
    """The bytes of all open leases' blobs; of those that are still being built, as planned.

    Errors: DatabaseUnavailable.
    """
    row = await database.row(_BYTES_HELD)
    return int(row["bytes_held"])
