"""Revoke many leases at once: all of a repo, or all whose ids begin alike.

A job of bounded batches, one append for each. It keeps no state of its own: what is revoked does
not match any more, so whoever is killed or stopped begins again and goes on where it was. Leases
that are granted after its start are not its business, which makes it end.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from leases.database import Database
from leases.decide import decide, guards
from leases.errors import Conflict
from leases.lessor import LEASE_COLUMNS, Caller, lease_of, new_lease_event
from leases.log import EventLog
from leases.model import RevokeLease

# Half a call of the log, so that what others append still fits beside it.
BATCH = 500
# A lease that somebody moves while it is being revoked is met again by the next pass.
_PASSES_MAX = 3
_AFTER_ALL_IDS = "g"  # Sorts behind every hexadecimal digit.

# What is past its deadline is the reaper's already.
_MATCHING = """
FROM mpack_leases
WHERE state <> 'reclaimed' AND revoked_at IS NULL AND delete_at > statement_timestamp()
  AND ($1::text IS NULL OR repo_id = $1) AND mpack_id >= $2 AND mpack_id < $3
  AND ($4::timestamptz IS NULL OR granted_at <= $4)
"""
_LOOK = f"SELECT count(*) AS leases, coalesce(sum(size_bytes), 0)::bigint AS bytes {_MATCHING}"
_BATCH = f"""
SELECT clock_timestamp() AS now, {LEASE_COLUMNS} {_MATCHING} AND mpack_id > $5
ORDER BY mpack_id LIMIT $6
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Which leases: of this repo (None: of any), with ids that begin like this."""

    repo_id: str | None = None
    id_prefix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Matching:
    """How many open leases are not revoked yet, and the bytes of their blobs."""

    leases: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoked:
    """What a batch did: revoked, and left because somebody moved or claimed them meanwhile."""

    revoked: int
    left: int


class Revocation:
    """Carries such jobs out. Errors of all methods: DatabaseUnavailable."""

    def __init__(self, database: Database, log: EventLog, *, replica: str) -> None:
        self._database = database
        self._event_log = log
        self._replica = replica

    async def look(self, chosen: Chosen) -> Matching:
        """What a job would revoke now."""
        row = await self._database.row(_LOOK, *_bounds(chosen), None)
        return Matching(leases=row["leases"], bytes=row["bytes"])

    async def batches(
        self, chosen: Chosen, *, reason: str, caller: Caller, limit: int | None = None
    ) -> AsyncIterator[Revoked]:
        """Revoke, a batch for each turn; stopping between two turns leaves nothing half done."""
        started_at = (await self._event_log.head())["now"]
        left_over = limit
        for _ in range(_PASSES_MAX):
            again = False
            after = ""
            while left_over is None or left_over > 0:
                count = BATCH if left_over is None else min(BATCH, left_over)
                rows = await self._database.fetch(
                    _BATCH, *_bounds(chosen), started_at, after, count
                )
                if not rows:
                    break
                after = rows[-1]["mpack_id"]
                done = await self._revoke(rows, reason=reason, caller=caller)
                again = again or done.left > 0
                left_over = None if left_over is None else left_over - done.revoked
                yield done
            if not again:
                return

    async def _revoke(self, rows: list[Any], *, reason: str, caller: Caller) -> Revoked:
        now: datetime = rows[0]["now"]
        command = RevokeLease(reason=reason)
        facts = []
        for lease in map(lease_of, rows):
            guard = guards(lease, command)
            facts += [
                new_lease_event(
                    lease.mpack_id,
                    event,
                    caller=caller,
                    replica=self._replica,
                    expected_version=lease.version,
                    not_after=guard.not_after,
                    no_claim=guard.no_claim,
                )
                for event in decide(lease, command, now=now)
            ]
        answers = await self._event_log.append_each(facts)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, Conflict):
                raise answer
        left = sum(isinstance(answer, Conflict) for answer in answers)
        return Revoked(revoked=len(facts) - left, left=left)


def _bounds(chosen: Chosen) -> tuple[str | None, str, str]:
    return chosen.repo_id, chosen.id_prefix, chosen.id_prefix + _AFTER_ALL_IDS
