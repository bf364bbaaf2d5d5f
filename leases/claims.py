"""Who may delete what is due: claims, in the work columns of the lease table.

A claim is one autocommit statement. It ends at its limit, with its holder's session, or when it is
given back; whoever holds none cannot record that a blob is gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from uuid import UUID

from leases.database_clock import DatabaseClock
from leases.instance import Instance
from leases.ledger import Due, DueNow, FailedAttempt, Ledger
from leases.lessor import LEASE_COLUMNS, lease_stream
from leases.model import Lease, LeaseCleanupFailed
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
CLAIMED = f"""
SELECT attempts, {LEASE_COLUMNS} FROM mpack_leases
WHERE claimed_by = $1 AND claim_token = $2
"""
DUE_NOW = f"""
WITH due AS (
    SELECT mpack_id, delete_at, {DUE} AS at FROM mpack_leases
    WHERE state <> 'reclaimed' AND {DUE} <= statement_timestamp()
      AND delete_at <= statement_timestamp() - $2::interval
    ORDER BY {DUE} LIMIT $1::bigint)
SELECT count(*) AS count, statement_timestamp() AS now, min(delete_at) AS deadline,
       ARRAY(SELECT mpack_id FROM due ORDER BY at LIMIT $3) AS mpack_ids
FROM due
"""
# No attempt is counted, but others come first: a blob that alone answers like an outage would
# otherwise be every probe, and keep all deletions waiting for ever.
HAND_BACK = """
UPDATE mpack_leases
SET claimed_by = NULL, claimed_until = NULL, claim_token = NULL,
    next_attempt_at = clock_timestamp() + make_interval(secs => $3)
WHERE mpack_id = ANY ($1::text[]) AND claim_token = $2
"""
RELEASE = """
UPDATE mpack_leases SET claimed_by = NULL, claimed_until = NULL, claim_token = NULL
WHERE claimed_by = ANY ($1::text[]) AND claim_token = ANY ($2::uuid[])
"""
COUNT_FAILURES = """
UPDATE mpack_leases AS l
SET attempts = f.attempts, last_error = f.error, claimed_by = NULL, claimed_until = NULL,
    claim_token = NULL, next_attempt_at = clock_timestamp() + make_interval(secs => f.delay)
FROM unnest($1::text[], $2::int[], $3::text[], $4::float8[])
    AS f (mpack_id, attempts, error, delay)
WHERE l.mpack_id = f.mpack_id AND l.claim_token = $5
"""


class Claims:
    """Takes claims in the name of this instance, and gives them back.

    Errors of all methods: DatabaseUnavailable; a claim may stand all the same.
    """

    def __init__(
        self,
        ledger: Ledger,
        instance: Instance,
        clock: Clock,
        *,
        database_clock: DatabaseClock,
        limit_seconds: float,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._database_clock = database_clock
        self._instance = instance
        self._limit = timedelta(seconds=limit_seconds)

    async def take(self, count: int, token: UUID, *, overdue: timedelta = timedelta()) -> list[Due]:
        """Up to `count` leases, overdue by so much, oldest first, which nobody else may delete now.

        `seen_at` is the claim's time.
        """
        name = self._instance.claim_name
        asked_at = self._clock.monotonic()
        found, now = await self._ledger.claim(
            count, name, limit=self._limit, token=token, overdue=overdue
        )
        self._database_clock.observe(now, asked_at=asked_at)
        if not found:
            return []
        rows = await self._ledger.claimed(name, token)
        claimed = [Due(lease, attempts, now) for lease, attempts in rows]
        return sorted(claimed, key=lambda due: due.lease.delete_at)

    async def look(self, count: int | None, *, overdue: timedelta, named: int) -> DueNow:
        """What `take` would find, without taking it; of the ids only so many."""
        return await self._ledger.due(count, overdue=overdue, named=named)

    async def hand_back(
        self, mpack_ids: Sequence[str], token: UUID, *, pause_seconds: float
    ) -> None:
        """Let somebody else try, after a pause; no attempt is counted."""
        await self._ledger.give_back(mpack_ids, token, pause_seconds=pause_seconds)

    async def release(self, tokens: Sequence[UUID]) -> None:
        """Give up whatever still stands under these tokens."""
        names = [f"{kind}.{self._instance.instance_id}" for kind in ("live", "free")]
        await self._ledger.release(names, tokens)

    async def count_failures(self, failures: Sequence[FailedAttempt], token: UUID) -> None:
        """Note failed attempts, and give the claims back until the next one."""
        await self._ledger.count_failures(failures, token)

    async def failed_before(self, leases: Sequence[Lease]) -> set[str]:
        """Those of these leases whose first failure stands in the log."""
        streams: Mapping[str, str] = {lease_stream(one.mpack_id): one.mpack_id for one in leases}
        found = await self._ledger.streams_with(list(streams), type=LeaseCleanupFailed.type)
        return {streams[stream] for stream in found}
