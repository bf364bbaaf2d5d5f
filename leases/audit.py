"""Prove the log, and the lease table against it; mend the table from the log.

`verify` believes nothing that the database computed: it recomputes every hash here, checks that
positions have no holes and that each stream's versions follow each other, and compares the fold
columns with the log both ways. What a whole rewrite would leave in order is held against heads that
were published outside. `rebuild` writes the differences, and nothing else, a part at a time under
the head lock, so that claims, grants and indexes stay as they are and the service goes on running.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, NamedTuple

import asyncpg
import structlog

from leases.beginning import Beginning
from leases.chain import link_hash
from leases.database import Database, rows_touched, translate
from leases.ledger import Row
from leases.lessor import LEASE_COLUMNS
from leases.log import EventLog

_PAGE = 5000
_PROBLEMS_MAX = 100
# A tenth of a second of hashing, in pieces that nobody else has to wait for.
TAIL_EVENTS = 10_000
TAIL_PAGE = 250
# Reads the whole log; at a hundred million events that takes its time.
_WHOLE_SECONDS_MAX = 3600.0
# The head is locked for about a third of a second at a time.
_REBUILD_ROWS = 10_000
_FOLD = f"{LEASE_COLUMNS}, last_position"
_FOLD_NAMES = [name.strip() for name in _FOLD.split(",")]

# For a few statements that read everything once; a third of a million leases fit into it.
_ROOM = "SET LOCAL work_mem = '256MB'; SET LOCAL jit = off; SET LOCAL lock_timeout = '10s'"
# One snapshot for both sides, so that running appends do not look like differences.
_COMPARED = f"""
FROM (SELECT {_FOLD} FROM mpack_leases) AS l
FULL JOIN mpack_leases_fold AS f ON f.mpack_id = l.mpack_id
WHERE ({", ".join("l." + n for n in _FOLD_NAMES)})
      IS DISTINCT FROM ({", ".join("f." + n for n in _FOLD_NAMES)})
"""
_DIFFERENCES = f"""
SELECT COALESCE(l.mpack_id, f.mpack_id) AS mpack_id,
       CASE WHEN l.mpack_id IS NULL THEN 'is missing from the table'
            WHEN f.mpack_id IS NULL THEN 'is not in the log'
            ELSE 'differs from the log' END AS what
{_COMPARED} LIMIT {_PROBLEMS_MAX}
"""
# Within a partition no version is there twice, so as many as from the least to the greatest are
# all of them. A stream that began in the archive may begin with any here.
_STREAMS = f"""
SELECT COALESCE(e.stream, s.stream) AS stream
FROM (SELECT stream, min(version) AS first, max(version) AS version, count(*) AS events,
             max(position) AS last_position
      FROM events GROUP BY stream) AS e
FULL JOIN event_streams AS s ON s.stream = e.stream
WHERE (e.stream IS NULL AND s.last_position > $1)
   OR (e.stream IS NOT NULL AND (
       e.events <> e.version - e.first + 1 OR (e.first <> 1 AND $1 = 0)
       OR (e.version, e.last_position) IS DISTINCT FROM (s.version, s.last_position)))
LIMIT {_PROBLEMS_MAX}
"""
_BEYOND = """
SELECT h.position, l.position AS last FROM event_head AS h,
       (SELECT max(position) AS position FROM events) AS l WHERE l.position > h.position
"""

# What is wrong, as the log has it; `turn` parts it. Rows of no lease in the log are `unknown`.
_WRONG = f"""
CREATE TEMPORARY TABLE wrong AS
SELECT (row_number() OVER () - 1) / {_REBUILD_ROWS} AS turn, f.mpack_id IS NULL AS unknown,
       COALESCE(l.mpack_id, f.mpack_id) AS row_id, f.* {_COMPARED}
"""
_TURNS = "SELECT DISTINCT turn FROM wrong ORDER BY turn"
_LOCK_HEAD = "SELECT FROM event_head WHERE id = 1 FOR UPDATE"
_MOVED = """
DELETE FROM wrong AS w USING event_streams AS s
WHERE w.turn = $1 AND s.stream = w.stream AND s.version <> w.version RETURNING w.stream
"""
_FOLD_AGAIN = """
INSERT INTO wrong SELECT $1, false, f.mpack_id, f.* FROM mpack_leases_fold AS f
WHERE f.stream = ANY ($2::text[])
"""
_MERGE = f"""
MERGE INTO mpack_leases AS l USING (SELECT * FROM wrong WHERE turn = $1 AND NOT unknown) AS f
ON l.mpack_id = f.mpack_id
WHEN MATCHED AND ({", ".join("l." + n for n in _FOLD_NAMES)})
     IS DISTINCT FROM ({", ".join("f." + n for n in _FOLD_NAMES)}) THEN
    UPDATE SET {", ".join(f"{n} = f.{n}" for n in _FOLD_NAMES if n != "mpack_id")}
WHEN NOT MATCHED THEN
    INSERT ({_FOLD}) VALUES ({", ".join("f." + n for n in _FOLD_NAMES)})
"""
_DROP_UNKNOWN = """
DELETE FROM mpack_leases AS l USING wrong AS w
WHERE w.turn = $1 AND w.unknown AND w.row_id = l.mpack_id AND NOT EXISTS (
    SELECT FROM events AS e WHERE e.stream = 'lease/' || l.mpack_id AND e.version = 1)
"""

# What is done about a verdict that is not ok.
REMEDY = (
    "A table that differs is mended by `audit rebuild`;"
    " a log that contradicts itself has to be restored."
)

_log = structlog.get_logger(__name__)


def _quietly(_events: int) -> None:
    """Nobody wants to know how far it is."""


class Published(NamedTuple):
    """A head that was told to somebody outside of the database, and to whom."""

    position: int
    hash: str
    where: str = ""


@dataclass(slots=True, kw_only=True)
class Verdict:
    """What was checked and what was wrong; ok when `problems` is empty.

    `notes` say what could not be checked here, and where it can.
    """

    events: int = 0
    head_position: int = 0
    head_hash: str = ""
    archived_position: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing contradicts itself."""
        return not self.problems

    def complain(self, problem: str) -> None:
        """Note a problem; the first hundred are kept."""
        if len(self.problems) < _PROBLEMS_MAX:
            self.problems.append(problem)


@dataclass(slots=True)
class _Chain:
    """How far the chain has been followed."""

    verdict: Verdict
    position: int
    hash: bytes
    moment: int = 0

    def follow(self, links: Iterable[Any]) -> None:
        """Each link from the one in front of it; hashes go on from what is stated."""
        for link in links:
            position, event_id, stream, version, type_, form = link[:6]
            data, data_sha, actor, request_id, moment, stated = link[6:]
            if position != self.position + 1:
                self.verdict.complain(
                    f"event {position} follows {self.position}: events are missing"
                )
            own_sha = sha256(data.encode()).digest()
            if own_sha != data_sha:
                self.verdict.complain(f"event {position}: its data is not what was recorded")
            fields = (position, event_id, stream, version, type_, form, own_sha, actor)
            if link_hash(self.hash, (*fields, request_id, moment)) != stated:
                self.verdict.complain(
                    f"event {position}: its hash does not follow from the event before it"
                )
            if moment < self.moment:
                self.verdict.complain(
                    f"event {position} was recorded before the event in front of it"
                )
            self.position, self.hash, self.moment = position, stated, moment
            self.verdict.events += 1


class Auditor:
    """Verifies and rebuilds."""

    def __init__(self, database: Database | None, log: EventLog) -> None:
        self._postgres = database
        self._event_log = log

    @property
    def _database(self) -> Database:
        """What reads or mends the whole table needs PostgreSQL itself; the tail needs the log."""
        assert self._postgres is not None
        return self._postgres

    async def verify(
        self, *, tell: Callable[[int], None] = _quietly, published: Sequence[Published] = ()
    ) -> Verdict:
        """Check the whole log up to its present head, then the table against it.

        `tell` hears now and then how many events have been checked; the log must have every
        event of `published`.
        """
        head = await self._event_log.head()
        begin = await self._event_log.beginning()
        verdict = await self._check_events(head, begin, page=_PAGE, tell=tell)
        verdict.archived_position = begin.position
        await self._check_table(verdict, begin)
        await self._check_published(verdict, begin, published)
        return verdict

    async def verify_tail(
        self,
        count: int = TAIL_EVENTS,
        *,
        page: int = TAIL_PAGE,
        published: Sequence[Published] = (),
    ) -> Verdict:
        """Check the newest events alone: what a service can afford every few minutes."""
        head = await self._event_log.head()
        begin = await self._event_log.beginning()
        before = head["position"] - count
        start = begin
        if before > begin.position:
            known = await self._event_log.hash_at(before)
            if known is None:
                verdict = Verdict(head_position=head["position"], head_hash=head["hash"].hex())
                verdict.complain(f"event {before} is missing")
                return verdict
            start = Beginning(position=before, hash=known)
        verdict = await self._check_events(head, start, page=page)
        verdict.archived_position = begin.position
        await self._check_published(verdict, begin, published)
        return verdict

    async def _check_events(
        self,
        head: Row,
        start: Beginning,
        *,
        page: int,
        tell: Callable[[int], None] = _quietly,
    ) -> Verdict:
        """Every event behind `start`, up to the head. A page is read while one is hashed."""
        verdict = Verdict(head_position=head["position"], head_hash=head["hash"].hex())
        chain = _Chain(verdict, start.position, start.hash)

        async def read(after: int) -> Sequence[Any]:
            return await self._event_log.links(after=after, until=head["position"], limit=page)

        links = await read(chain.position)
        while links:
            async with asyncio.TaskGroup() as tasks:
                ahead = tasks.create_task(read(links[-1][0]))
                await asyncio.to_thread(chain.follow, links)
            tell(verdict.events)
            links = ahead.result()
        if chain.position != head["position"]:
            verdict.complain(
                f"the log's rows end at {chain.position}, its head says {head['position']}"
            )
        elif chain.hash != head["hash"]:
            verdict.complain("the head's hash is not the last event's")
        return verdict

    async def _check_table(self, verdict: Verdict, begin: Beginning) -> None:
        for row in await self._whole(_BEYOND):
            verdict.complain(
                f"the log's rows end at {row['last']}, its head says {row['position']}"
            )
        for row in await self._whole(_STREAMS, begin.position):
            verdict.complain(f"stream {row['stream']}: its versions are out of turn")
        for row in await self._whole(_DIFFERENCES):
            verdict.complain(f"lease {row['mpack_id']} {row['what']}")

    async def _whole(self, sql: str, *args: Any) -> list[asyncpg.Record]:
        """A statement that reads everything: longer than any other may take."""
        async with (
            self._database.driver() as driver,
            asyncio.timeout(_WHOLE_SECONDS_MAX),
            driver.transaction(readonly=True),
        ):
            await driver.execute(_ROOM)
            return await driver.fetch(sql, *args)

    async def _check_published(
        self, verdict: Verdict, begin: Beginning, published: Sequence[Published]
    ) -> None:
        for position, stated, where in published:
            told = f"event {position} was published{where}"
            if position > verdict.head_position:
                verdict.complain(
                    f"the log ends at {verdict.head_position}, but {told}: its end was cut off"
                )
                continue
            known = await self._event_log.hash_at(position)
            if known is None and position == begin.position:
                known = begin.hash
            if known is None and position < begin.position:
                verdict.notes.append(f"{told}, and is archived: deploy/verify_export.py proves it")
            elif known is None or known.hex() != stated:
                verdict.complain(f"{told} with another hash: the log was rewritten")

    async def rebuild(self) -> int:
        """Write into the lease table what the log says; answers how many rows were wrong.

        Needs the owner's rights, and a connection of its own (no transaction pooler). Killed in
        between, the next one does the rest.
        Errors: DatabaseUnavailable.
        """
        changed = 0
        try:
            async with self._database.driver() as driver, asyncio.timeout(_WHOLE_SECONDS_MAX):
                async with driver.transaction():
                    await driver.execute(_ROOM)
                    await driver.execute(_WRONG)
                try:
                    for row in await driver.fetch(_TURNS):
                        changed += await _mend(driver, row["turn"])
                finally:
                    await driver.execute("DROP TABLE wrong")
        except Exception as error:
            if (failure := translate(error)) is not None:
                raise failure from error
            raise
        _log.info("projection_rebuilt", rows_changed=changed)
        return changed


async def _mend(driver: asyncpg.Connection[asyncpg.Record], turn: int) -> int:
    """One part of what is wrong; nobody appends meanwhile, so the fold is the whole truth."""
    async with driver.transaction():
        await driver.execute(_ROOM)
        await driver.execute(_LOCK_HEAD)
        moved = [row["stream"] for row in await driver.fetch(_MOVED, turn)]
        if moved:
            await driver.execute(_FOLD_AGAIN, turn, moved)
        changed = rows_touched(await driver.execute(_MERGE, turn))
        return changed + rows_touched(await driver.execute(_DROP_UNKNOWN, turn))
