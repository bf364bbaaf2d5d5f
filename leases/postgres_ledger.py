"""The ledger on PostgreSQL: each method is one autocommit statement.

The statements about claims and those of the log stand in `claims.py` and `log.py`, beside the
reasons for what they look like.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg

from leases import claims, log
from leases.chain import StoredEvent
from leases.claims import DUE
from leases.database import Database
from leases.instance import LIVE_INSTANCES, LOCK_CLASS
from leases.ledger import Claimed, DueNow, FailedAttempt, Look, Row
from leases.lessor import LEASE_COLUMNS, lease_of
from leases.model import Lease

_HEAD = "SELECT log_id, position, hash, recorded_at, clock_timestamp() AS now FROM event_head"
_READ = f"SELECT {log.COLUMNS} FROM events WHERE position > $1 ORDER BY position LIMIT $2"
_READ_STREAM = (
    f"SELECT {log.COLUMNS} FROM events WHERE stream = $3 AND version > $1 ORDER BY version LIMIT $2"
)
# One row, whether or not there is such a stream.
_NEWEST = """
SELECT h.log_id, COALESCE(s.version, 0) AS version, e.type, e.actor, e.data
FROM event_head AS h LEFT JOIN event_streams AS s ON s.stream = $1
LEFT JOIN events AS e ON e.position = s.last_position
"""
_STREAMS = "SELECT stream FROM event_streams WHERE stream = ANY ($1::text[])"
_STREAMS_WITH = "SELECT stream FROM events WHERE stream = ANY ($1::text[]) AND type = $2"

# One row at least. LIMIT keeps the planner from reading a table that was small when it planned.
LEASES = f"""
SELECT clock_timestamp() AS now, found.*
FROM (SELECT 1) AS one LEFT JOIN (unnest($1::text[]) AS asked (id) CROSS JOIN LATERAL (
    SELECT {LEASE_COLUMNS} FROM mpack_leases WHERE mpack_id = asked.id LIMIT 1) AS found) ON true
"""
_ACTIVE = """
SELECT mpack_id, storage_key FROM mpack_leases
WHERE state = 'active' AND activated_at < $1 AND mpack_id > $2 ORDER BY mpack_id LIMIT $3
"""
_ATTEMPTS = "SELECT attempts FROM mpack_leases WHERE mpack_id = $1"
# A worker that has claimed it meanwhile is at it already.
_FORGET_ATTEMPTS = """
UPDATE mpack_leases SET attempts = 0, next_attempt_at = NULL
WHERE mpack_id = $1 AND claim_token IS NULL
"""

NEXT_DUE = (
    f"SELECT {DUE} AS due FROM mpack_leases WHERE state <> 'reclaimed' ORDER BY {DUE} LIMIT 1"
)
LOOK = f"""
SELECT clock_timestamp() AS now, ({NEXT_DUE}) AS due, cardinality(live.names) AS live,
       EXISTS (SELECT FROM mpack_leases WHERE claimed_by LIKE 'live.%'
               AND claimed_by <> ALL (live.names)) AS dead_claims
FROM (SELECT {LIVE_INSTANCES} AS names) AS live
"""
FREE_DEAD_CLAIMS = f"""
UPDATE mpack_leases SET claimed_by = NULL, claimed_until = NULL, claim_token = NULL
WHERE claimed_by LIKE 'live.%' AND claimed_by <> ALL ({LIVE_INSTANCES})
"""


class PostgresSession:
    """A session of the server."""

    def __init__(self, driver: asyncpg.Connection[asyncpg.Record]) -> None:
        self._driver = driver

    def on_end(self, ended: Callable[[], None]) -> None:
        self._driver.add_termination_listener(lambda _connection: ended())

    async def lock(self, key: int) -> bool:
        return bool(
            await self._driver.fetchval("SELECT pg_try_advisory_lock($1, $2)", LOCK_CLASS, key)
        )

    async def listen(self, channel: str, heard: Callable[[str, str], None]) -> None:
        def told(_connection: Any, _pid: int, channel: str, payload: object) -> None:
            heard(channel, str(payload))

        await self._driver.add_listener(channel, told)

    async def ping(self) -> None:
        await self._driver.execute("SELECT 1")

    def end(self) -> None:
        self._driver.terminate()


class PostgresLedger:
    """Carries out `leases.ledger.Ledger`, which says what each method does."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def another(self) -> PostgresLedger:
        return PostgresLedger(self._database.another())

    def held(self) -> PostgresLedger:
        return PostgresLedger(self._database.held())

    async def close(self) -> None:
        await self._database.close()

    @asynccontextmanager
    async def session(self) -> AsyncIterator[PostgresSession]:
        async with self._database.driver() as driver:
            yield PostgresSession(driver)

    # The log. ------------------------------------------------------------------------------------

    async def append(self, columns: Sequence[Sequence[Any]]) -> Row:
        return await self._database.row(log.APPEND, *columns)

    async def places(self, event_ids: Sequence[UUID]) -> Sequence[Any]:
        return await self._database.fetch(log.PLACES.format(ids="$1::uuid[]"), list(event_ids))

    async def head(self) -> Row:
        return await self._database.row(_HEAD)

    async def read(
        self, *, after: int, limit: int, stream: str | None = None
    ) -> Sequence[StoredEvent]:
        if stream is None:
            rows = await self._database.fetch(_READ, after, limit)
        else:
            rows = await self._database.fetch(_READ_STREAM, after, limit, stream)
        return [log.stored(row) for row in rows]

    async def links(self, *, after: int, until: int, limit: int) -> Sequence[Any]:
        return await self._database.fetch(log.LINKS, after, until, limit)

    async def newest(self, stream: str) -> Row:
        return await self._database.row(_NEWEST, stream)

    async def streams_with(self, streams: Sequence[str], *, type: str | None = None) -> set[str]:  # noqa: A002
        if type is None:
            rows = await self._database.fetch(_STREAMS, list(streams))
        else:
            rows = await self._database.fetch(_STREAMS_WITH, list(streams), type)
        return {row["stream"] for row in rows}

    # Leases. -------------------------------------------------------------------------------------

    async def leases(self, mpack_ids: Sequence[str]) -> tuple[Mapping[str, Lease], datetime]:
        rows = await self._database.fetch(LEASES, list(mpack_ids))
        found = {row["mpack_id"]: lease_of(row) for row in rows if row["mpack_id"] is not None}
        return found, rows[0]["now"]

    async def active(
        self, *, before: datetime, after: str, limit: int
    ) -> Sequence[tuple[str, str]]:
        rows = await self._database.fetch(_ACTIVE, before, after, limit)
        return [(row["mpack_id"], row["storage_key"]) for row in rows]

    async def attempts(self, mpack_id: str) -> int:
        row = await self._database.fetchrow(_ATTEMPTS, mpack_id)
        return int(row["attempts"]) if row else 0

    async def forget_attempts(self, mpack_id: str) -> None:
        await self._database.execute(_FORGET_ATTEMPTS, mpack_id)

    # Claims. -------------------------------------------------------------------------------------

    async def claim(
        self, count: int, name: str, *, limit: timedelta, token: UUID, overdue: timedelta
    ) -> tuple[int, datetime]:
        row = await self._database.row(claims.CLAIM, count, name, limit, token, overdue)
        return row["claimed"], row["now"]

    async def claimed(self, name: str, token: UUID) -> Sequence[Claimed]:
        rows = await self._database.fetch(claims.CLAIMED, name, token)
        return [Claimed(lease_of(row), row["attempts"]) for row in rows]

    async def give_back(
        self, mpack_ids: Sequence[str], token: UUID, *, pause_seconds: float
    ) -> None:
        await self._database.execute(claims.HAND_BACK, list(mpack_ids), token, pause_seconds)

    async def count_failures(self, failures: Sequence[FailedAttempt], token: UUID) -> None:
        await self._database.execute(
            claims.COUNT_FAILURES,
            [failure.mpack_id for failure in failures],
            [failure.attempts for failure in failures],
            [failure.error for failure in failures],
            [failure.retry_seconds for failure in failures],
            token,
        )

    async def release(self, names: Sequence[str], tokens: Sequence[UUID]) -> None:
        await self._database.execute(claims.RELEASE, list(names), list(tokens))

    async def due(self, count: int | None, *, overdue: timedelta, named: int) -> DueNow:
        return DueNow(**await self._database.row(claims.DUE_NOW, count, overdue, named))

    async def look_ahead(self) -> Look:
        return Look(*await self._database.row(LOOK))

    async def free_dead_claims(self) -> int:
        return await self._database.execute(FREE_DEAD_CLAIMS)
