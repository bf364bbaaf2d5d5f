"""Who may delete what is due: claims, in the work columns of the lease table.

A claim is one autocommit statement. It ends at its limit, with its holder's session, or when it is
given back; whoever holds none cannot record that a blob is gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from leases.database import Database
from leases.instance import Instance
from leases.lessor import LEASE_COLUMNS, lease_of, lease_stream
from leases.model import Lease
from leases.ports import Clock

# When somebody has to look at a row next; the partial index is ordered by this very expression.
DUE = "GREATEST(delete_at, next_attempt_at, claimed_until)"
# Compared with statement_timestamp(): clock_timestamp() is volatile and could not use the index.
CLAIM = f"""
WITH due AS (
    SELECT mpack_id FROM mpack_leases
    WHERE state <> 'reclaimed' AND {DUE} <= statement_timestamp()
      AND delete_at <= statement_timestamp() - $5::interval
    ORDER BY {DUE} LIMIT $1 FOR UPDATE SKIP LOCKED
), claimed AS (
    UPDATE mpack_leases AS l
    SET claimed_by = $2, claimed_until = statement_timestamp() + $3, claim_token = $4
    FROM due WHERE l.mpack_id = due.mpack_id
    RETURNING l.mpack_id)
SELECT count(*) AS claimed, statement_timestamp() AS now FROM claimed
"""
# Apart from the claim: a process that is frozen while it receives rows keeps the sender's
# transaction open, and with it the row locks that nobody's claim limit ends.
_CLAIMED = f"""
SELECT $3::timestamptz AS now, attempts, {LEASE_COLUMNS} FROM mpack_leases
WHERE claimed_by = $1 AND claim_token = $2
"""
DUE_NOW = f"""
SELECT statement_timestamp() AS now, attempts, {LEASE_COLUMNS} FROM mpack_leases
WHERE state <> 'reclaimed' AND {DUE} <= statement_timestamp()
  AND delete_at <= statement_timestamp() - $2::interval
ORDER BY {DUE} LIMIT $1
"""
# No attempt is counted, but others come first: a blob that alone answers like an outage would
# otherwise be every probe, and keep all deletions waiting for ever.
_HAND_BACK = """
UPDATE mpack_leases
SET claimed_by = NULL, claimed_until = NULL, claim_token = NULL,
    next_attempt_at = clock_timestamp() + make_interval(secs => $3)
WHERE mpack_id = ANY ($1::text[]) AND claim_token = $2
"""
_RELEASE = """
UPDATE mpack_leases SET claimed_by = NULL, claimed_until = NULL, claim_token = NULL
WHERE claimed_by = ANY ($1::text[]) AND claim_token = ANY ($2::uuid[])
"""
_COUNT_FAILURES = """
UPDATE mpack_leases AS l
SET attempts = f.attempts, last_error = f.error, claimed_by = NULL, claimed_until = NULL,
    claim_token = NULL, next_attempt_at = clock_timestamp() + make_interval(secs => f.delay)
FROM unnest($1::text[], $2::int[], $3::text[], $4::float8[])
    AS f (mpack_id, attempts, error, delay)
WHERE l.mpack_id = f.mpack_id AND l.claim_token = $5
"""
_NOTED_BEFORE = """
SELECT stream FROM events WHERE stream = ANY ($1::text[]) AND type = 'lease.cleanup_failed'
"""


@dataclass(frozen=True, slots=True)
class Due:
    """A due lease, with the attempts that the reaper noted and the database's time of the look."""

    lease: Lease
    attempts: int
    seen_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedAttempt:
    """What to note about a deletion that failed."""

    mpack_id: str
    attempts: int
    error: str
    retry_seconds: float


class Claims:
    """Takes claims in the name of this instance, and gives them back.

    Errors of all methods: DatabaseUnavailable; a claim may stand all the same.
    """

    def __init__(
        self, database: Database, instance: Instance, clock: Clock, *, limit_seconds: float
    ) -> None:
        self._database = database
        self._clock = clock
        self._instance = instance
        self._limit = timedelta(seconds=limit_seconds)

    async def take(self, count: int, token: UUID, *, overdue: timedelta = timedelta()) -> list[Due]:
        """Up to `count` leases, overdue by so much, oldest first, which nobody else may delete now.

        `seen_at` is the claim's time, moved on to now by the time since its answer came.
        """
        name = self._instance.claim_name
        answer = await self._database.fetchrow(CLAIM, count, name, self._limit, token, overdue)
        assert answer is not None
        if not answer["claimed"]:
            return []
        answered_at = self._clock.monotonic()
        rows = await self._database.fetch(_CLAIMED, name, token, answer["now"])
        since = timedelta(seconds=self._clock.monotonic() - answered_at)
        claimed = [Due(lease_of(row), row["attempts"], row["now"] + since) for row in rows]
        return sorted(claimed, key=lambda due: due.lease.delete_at)

    async def look(self, count: int, *, overdue: timedelta = timedelta()) -> list[Due]:
        """What `take` would find, without taking it."""
        rows = await self._database.fetch(DUE_NOW, count, overdue)
        return [Due(lease_of(row), row["attempts"], row["now"]) for row in rows]

    async def hand_back(
        self, mpack_ids: Sequence[str], token: UUID, *, pause_seconds: float
    ) -> None:
        """Let somebody else try, after a pause; no attempt is counted."""
        await self._database.execute(_HAND_BACK, list(mpack_ids), token, pause_seconds)

    async def release(self, tokens: Sequence[UUID]) -> None:
        """Give up whatever still stands under these tokens."""
        names = [f"{kind}.{self._instance.instance_id}" for kind in ("live", "free")]
        await self._database.execute(_RELEASE, names, list(tokens))

    async def count_failures(self, failures: Sequence[FailedAttempt], token: UUID) -> None:
        """Note failed attempts, and give the claims back until the next one."""
        await self._database.execute(
            _COUNT_FAILURES,
            [failure.mpack_id for failure in failures],
            [failure.attempts for failure in failures],
            [failure.error for failure in failures],
            [failure.retry_seconds for failure in failures],
            token,
        )

    async def failed_before(self, leases: Sequence[Lease]) -> set[str]:
        """Those of these leases whose first failure stands in the log."""
        streams: Mapping[str, str] = {lease_stream(one.mpack_id): one.mpack_id for one in leases}
        rows = await self._database.fetch(_NOTED_BEFORE, list(streams))
        return {streams[row["stream"]] for row in rows}
