"""Prove the log, and the lease table against it; mend the table from the log.

`verify` believes nothing that the database computed: it recomputes every hash here, checks that
positions have no holes and that each stream's versions follow each other, and compares the fold
columns with the log both ways. `rebuild` writes the differences, and nothing else, under the head
lock, so that claims, grants and indexes stay as they are and the service may go on running.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256

import asyncpg
import structlog
from sqlalchemy import text

from leases.chain import StoredEvent, event_hash, genesis
from leases.database import Database, rows_touched, translate
from leases.lessor import LEASE_COLUMNS
from leases.log import EventLog

_PAGE = 5000
_PROBLEMS_MAX = 100
# A tenth of a second of hashing, in pieces that nobody else has to wait for.
TAIL_EVENTS = 10_000
_TAIL_PAGE = 250
_FOLD = f"{LEASE_COLUMNS}, last_position"
_FOLD_NAMES = [name.strip() for name in _FOLD.split(",")]

# One snapshot for both sides, so that running appends do not look like differences.
_DIFFERENCES = f"""
SELECT COALESCE(l.mpack_id, f.mpack_id) AS mpack_id,
       CASE WHEN l.mpack_id IS NULL THEN 'is missing from the table'
            WHEN f.mpack_id IS NULL THEN 'is not in the log'
            ELSE 'differs from the log' END AS what
FROM (SELECT {_FOLD} FROM mpack_leases) AS l
FULL JOIN mpack_leases_fold AS f ON f.mpack_id = l.mpack_id
WHERE (l.*) IS DISTINCT FROM (f.*)
LIMIT {_PROBLEMS_MAX}
"""
_STREAMS = f"""
SELECT COALESCE(e.stream, s.stream) AS stream
FROM (SELECT stream, max(version) AS version, max(position) AS last_position,
             bool_and(version = turn) AS in_turn
      FROM (SELECT stream, version, position,
                   row_number() OVER (PARTITION BY stream ORDER BY position) AS turn
            FROM events) AS numbered
      GROUP BY stream) AS e
FULL JOIN event_streams AS s ON s.stream = e.stream
WHERE e.in_turn IS DISTINCT FROM true
   OR (e.version, e.last_position) IS DISTINCT FROM (s.version, s.last_position)
LIMIT {_PROBLEMS_MAX}
"""
_BEYOND = """
SELECT h.position, l.position AS last FROM event_head AS h,
       (SELECT max(position) AS position FROM events) AS l WHERE l.position > h.position
"""
_SHADOW = """
CREATE TEMPORARY TABLE shadow ON COMMIT DROP AS SELECT * FROM mpack_leases_fold
"""
_MERGE = f"""
MERGE INTO mpack_leases AS l USING shadow AS f ON l.mpack_id = f.mpack_id
WHEN MATCHED AND ({", ".join("l." + n for n in _FOLD_NAMES)})
     IS DISTINCT FROM ({", ".join("f." + n for n in _FOLD_NAMES)}) THEN
    UPDATE SET {", ".join(f"{n} = f.{n}" for n in _FOLD_NAMES if n != "mpack_id")}
WHEN NOT MATCHED THEN
    INSERT ({_FOLD}) VALUES ({", ".join("f." + n for n in _FOLD_NAMES)})
"""
_DROP_UNKNOWN = """
DELETE FROM mpack_leases AS l WHERE NOT EXISTS (
    SELECT FROM shadow AS f WHERE f.mpack_id = l.mpack_id)
"""

_log = structlog.get_logger(__name__)


def _quietly(_events: int) -> None:
    """Nobody wants to know how far it is."""


@dataclass(slots=True, kw_only=True)
class Verdict:
    """What was checked and what was wrong; ok when `problems` is empty."""

    events: int = 0
    head_position: int = 0
    head_hash: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing contradicts itself."""
        return not self.problems

    def complain(self, problem: str) -> None:
        """Note a problem; the first hundred are kept."""
        if len(self.problems) < _PROBLEMS_MAX:
            self.problems.append(problem)


class Auditor:
    """Verifies and rebuilds."""

    def __init__(self, database: Database, log: EventLog) -> None:
        self._database = database
        self._event_log = log

    async def verify(self, *, tell: Callable[[int], None] = _quietly) -> Verdict:
        """Check the whole log up to its present head, then the table against it.

        `tell` hears now and then how many events have been checked.
        """
        head = await self._event_log.head()
        verdict = await self._check_events(head, last=None, page=_PAGE, tell=tell)
        await self._check_table(verdict)
        return verdict

    async def verify_tail(self, count: int = TAIL_EVENTS) -> Verdict:
        """Check the newest events alone: what a service can afford every few minutes."""
        head = await self._event_log.head()
        before = head["position"] - count
        if before <= 0:
            return await self._check_events(head, last=None, page=_TAIL_PAGE)
        found = await self._event_log.read(after=before - 1, limit=1)
        if not found or found[0].position != before:
            verdict = Verdict(head_position=head["position"], head_hash=head["hash"].hex())
            verdict.complain(f"event {before} is missing")
            return verdict
        return await self._check_events(head, last=found[0], page=_TAIL_PAGE)

    async def _check_events(
        self,
        head: asyncpg.Record,
        *,
        last: StoredEvent | None,
        page: int,
        tell: Callable[[int], None] = _quietly,
    ) -> Verdict:
        """Every event behind `last` (None: from the first one on), up to the head."""
        verdict = Verdict(head_position=head["position"], head_hash=head["hash"].hex())
        previous = last.hash if last else genesis(head["log_id"])
        while (after := last.position if last else 0) < head["position"]:
            events = await self._event_log.read(after=after, limit=page)
            events = [event for event in events if event.position <= head["position"]]
            for event in events:
                _check(event, last, previous, verdict)
                previous, last = event.hash, event
                verdict.events += 1
            if not events:
                break
            tell(verdict.events)
        if after != head["position"]:
            verdict.complain(f"the log's rows end at {after}, its head says {head['position']}")
        elif previous != head["hash"]:
            verdict.complain("the head's hash is not the last event's")
        return verdict

    async def _check_table(self, verdict: Verdict) -> None:
        for row in await self._database.fetch(_BEYOND):
            verdict.complain(
                f"the log's rows end at {row['last']}, its head says {row['position']}"
            )
        for row in await self._database.fetch(_STREAMS):
            verdict.complain(f"stream {row['stream']}: its versions are out of turn")
        for row in await self._database.fetch(_DIFFERENCES):
            verdict.complain(f"lease {row['mpack_id']} {row['what']}")

    async def rebuild(self) -> int:
        """Write into the lease table what the log says; answers how many rows were wrong.

        Errors: DatabaseUnavailable; the table is then as it was.
        """
        try:
            async with self._database.engine.begin() as connection:
                await connection.execute(text("SET LOCAL lock_timeout = '10s'"))
                # Nobody appends from here to the commit, so the shadow is the whole truth.
                await connection.execute(text("SELECT FROM event_head WHERE id = 1 FOR UPDATE"))
                await connection.execute(text(_SHADOW))
                # SQLAlchemy does not count what a MERGE touched; the driver does.
                driver = (await connection.get_raw_connection()).driver_connection
                assert driver is not None
                changed = rows_touched(await driver.execute(_MERGE))
                changed += rows_touched(await driver.execute(_DROP_UNKNOWN))
        except Exception as error:
            if (failure := translate(error)) is not None:
                raise failure from error
            raise
        _log.info("projection_rebuilt", rows_changed=changed)
        return changed


def _check(event: StoredEvent, last: StoredEvent | None, previous: bytes, verdict: Verdict) -> None:
    """One event against the one in front of it."""
    place = f"event {event.position}"
    if event.position != (last.position if last else 0) + 1:
        verdict.complain(f"{place} follows {last.position if last else 0}: events are missing")
    if sha256(event.data.encode()).digest() != event.data_sha:
        verdict.complain(f"{place}: its data is not what was recorded")
    if event_hash(previous, event) != event.hash:
        verdict.complain(f"{place}: its hash does not follow from the event before it")
    if last is not None and event.recorded_at < last.recorded_at:
        verdict.complain(f"{place} was recorded before the event in front of it")
