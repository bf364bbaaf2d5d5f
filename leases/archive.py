"""Take the oldest part of the log out of the database, with the leases that ended in it.

A part is a partition of `events`. It is written to files and read back (every hash, from the
file's own text), and only then, in one transaction, detached, its leases' rows removed, and
`log.archived` appended, which names the part's last hash: so the chain goes on over the gap, and
the log itself says what was taken out. Killed anywhere, it is run again: files are written anew
under the same names, or found to be whole; what was detached is not looked at any more.

`event_streams` keeps a row for every lease that ever was: an id is never used twice, and a blob
that comes back under an archived one is told from a blob whose row was lost.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from leases.archive_files import Begun, File, Part, read_back, write_file
from leases.beginning import (
    ARCHIVE_STREAM,
    NEWEST_ARCHIVE,
    Beginning,
    beginning,
    beginning_of,
)
from leases.codec import JSON, dump, instant
from leases.database import Database, translate
from leases.errors import LogCorrupt, Unavailable
from leases.lessor import LEASE_COLUMNS, Caller
from leases.log import EventLog, NewEvent
from leases.steps import Step, Steps, no_steps

_PAGE = 5000
_DETACH_SECONDS_MAX = 3600.0
# Nobody appends while this waits for those who read the log; an audit reads it for minutes.
_READERS_AWAITED = "SET LOCAL lock_timeout = '300ms'"

_PARTS = """
SELECT c.relname AS name, substr(c.relname, 9)::bigint * event_partition_size() AS first,
       (substr(c.relname, 9)::bigint + 1) * event_partition_size() - 1 AS last
FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
WHERE i.inhparent = 'events'::regclass ORDER BY 2
"""
_ENDS = "SELECT recorded_at, hash FROM events WHERE position = $1"
# The first event of a lease is recorded after the time that it was granted at.
_OPEN = """
SELECT l.mpack_id FROM mpack_leases AS l
WHERE l.state <> 'reclaimed' AND l.granted_at <= $2 AND EXISTS (
    SELECT FROM events AS e
    WHERE e.stream = 'lease/' || l.mpack_id AND e.version = 1 AND e.position <= $1)
ORDER BY l.mpack_id LIMIT 1
"""
# A pause is in force as long as its event is the newest of its stream.
_PAUSED = """
SELECT e.position FROM event_streams AS s JOIN events AS e ON e.position = s.last_position
WHERE s.stream = 'reaping/store' AND e.type = 'reaping.paused' AND e.position <= $1
"""
_LEASES = f"""
SELECT {LEASE_COLUMNS}, last_position FROM mpack_leases
WHERE mpack_id > $1 AND mpack_id IN (
    SELECT substr(stream, 7) FROM {{part}} WHERE stream LIKE 'lease/%' AND version = 1)
ORDER BY mpack_id LIMIT {_PAGE}
"""
_REMOVE = """
DELETE FROM mpack_leases WHERE state = 'reclaimed' AND mpack_id IN (
    SELECT substr(stream, 7) FROM {part} WHERE stream LIKE 'lease/%' AND version = 1)
"""
_LEFT = """
SELECT mpack_id FROM mpack_leases WHERE mpack_id IN (
    SELECT substr(stream, 7) FROM {part} WHERE stream LIKE 'lease/%' AND version = 1) LIMIT 1
"""

_MOVED = "The log has moved on since this part was looked at; run it again."

Tell = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What an archive holds; `after` and `head` are POSITION:HASH."""

    log_id: str
    first_position: int
    last_position: int
    after: str
    head: str
    ended_at: str
    events: File
    leases: File


class Archiver:
    """Looks for parts that may go, writes them, and takes them out. Needs the owner's rights."""

    def __init__(self, database: Database, log: EventLog, *, steps: Steps = no_steps) -> None:
        self._database = database
        self._event_log = log
        self._steps = steps

    async def parts(self, before: datetime) -> tuple[list[Part], str]:
        """The parts that may go, the oldest first, and why the next one may not."""
        head = await self._event_log.head()
        begin = await beginning_of(self._database)
        found: list[Part] = []
        for row in await self._database.fetch(_PARTS):
            first, last = max(row["first"], 1), row["last"]
            if last >= head["position"]:
                return found, "the next part of the log is not full yet"
            end = await self._database.fetchrow(_ENDS, last)
            if first != begin.position + 1 or end is None:
                return found, f"event {begin.position + 1} is missing: run audit verify"
            if end["recorded_at"] >= before:
                return found, f"the next part ended at {instant(end['recorded_at'])}"
            if await self._database.fetchrow(_PAUSED, last) is not None:
                return found, "reaping was paused there and still is"
            if open_ := await self._database.fetchrow(_OPEN, last, end["recorded_at"]):
                return found, f"lease {open_['mpack_id']} began there and is still open"
            part = Part(
                name=row["name"],
                first_position=first,
                last_position=last,
                previous_hash=begin.hash.hex(),
                hash=end["hash"].hex(),
                ended_at=end["recorded_at"],
            )
            found.append(part)
            begin = Beginning(position=last, hash=end["hash"])
        return found, ""

    async def write(self, part: Part, folder: Path, *, tell: Tell) -> Manifest:
        """The part in files, on disk and read back; those that are there already are made anew.

        What is there is replaced by what has been proven alone: another run, or a killed one's
        COMMIT, may take the part out meanwhile, and then those files are all that is left of it.
        Errors: LogCorrupt when the files do not prove themselves; Unavailable when the part has
        gone meanwhile; OSError; DatabaseUnavailable.
        """
        try:
            return await self._write_all(part, folder, tell)
        except (LogCorrupt, asyncpg.UndefinedTableError) as error:
            if (await beginning_of(self._database)).position >= part.first_position:
                raise Unavailable(_MOVED) from error
            raise

    async def _write_all(self, part: Part, folder: Path, tell: Tell) -> Manifest:
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
        span = f"{part.first_position:012}-{part.last_position:012}"
        head = await self._event_log.head()
        events, leases = folder / f"events-{span}.ndjson", folder / f"leases-{span}.ndjson"
        begun = Begun(part)
        events_file = await write_file(events, self._event_pages(part, tell), begun.proven)
        self._steps(Step.ARCHIVE_EVENTS_WRITTEN)
        leases_file = await write_file(leases, self._lease_pages(part), begun.complete)
        self._steps(Step.ARCHIVE_LEASES_WRITTEN)
        manifest = Manifest(
            log_id=str(head["log_id"]),
            first_position=part.first_position,
            last_position=part.last_position,
            after=f"{part.first_position - 1}:{part.previous_hash}",
            head=f"{part.last_position}:{part.hash}",
            ended_at=instant(part.ended_at),
            events=events_file,
            leases=leases_file,
        )
        told = json.dumps(asdict(manifest), indent=2) + "\n"

        async def once() -> AsyncIterator[list[str]]:
            yield [told]

        await write_file(folder / f"manifest-{span}.json", once(), read_back)
        self._steps(Step.ARCHIVE_MANIFEST_WRITTEN)
        return manifest

    async def detach(
        self, part: Part, manifest: Manifest, *, caller: Caller, drop: bool = False
    ) -> int:
        """Take the part out of the log, and its leases out of the table; answers how many.

        All of it or nothing. Without `drop` the partition stays as a table by itself.
        Errors: Unavailable, after which it may or may not be done.
        """
        data: dict[str, JSON] = {
            "first_position": part.first_position,
            "last_position": part.last_position,
            "previous_hash": part.previous_hash,
            "hash": part.hash,
            "events_sha256": manifest.events.sha256,
            "leases_sha256": manifest.leases.sha256,
        }
        fact = NewEvent(
            stream=ARCHIVE_STREAM,
            type="log.archived",
            data=data,
            expected_version=None,
            actor=caller.actor,
            request_id=caller.request_id,
        )
        try:
            async with (
                asyncio.timeout(_DETACH_SECONDS_MAX),
                self._database.engine.begin() as connection,
            ):
                removed = await connection.execute(text(_REMOVE.format(part=part.name)))
                self._steps(Step.ARCHIVE_LEASES_REMOVED)
                await self._take_out(connection, part, drop=drop)
                self._steps(Step.ARCHIVE_PART_DETACHED)
                await self._event_log.append_in(connection, [fact])
                self._steps(Step.ARCHIVE_APPENDED)
        except Exception as error:
            if (failure := translate(error)) is not None:
                raise failure from error
            raise
        self._steps(Step.ARCHIVE_COMMITTED)
        return removed.rowcount

    async def _take_out(self, connection: AsyncConnection, part: Part, *, drop: bool) -> None:
        # The head before the partition, as appends lock them.
        await connection.execute(text("SELECT FROM event_head WHERE id = 1 FOR UPDATE"))
        newest = (await connection.execute(text(NEWEST_ARCHIVE))).one()
        begin = beginning(newest.log_id, newest.data)
        left = (await connection.execute(text(_LEFT.format(part=part.name)))).first()
        if left is not None or begin.position + 1 != part.first_position:
            raise Unavailable(_MOVED)
        await connection.execute(text(_READERS_AWAITED))
        await connection.execute(text(f"ALTER TABLE events DETACH PARTITION {part.name}"))
        if drop:
            await connection.execute(text(f"DROP TABLE {part.name}"))

    async def _event_pages(self, part: Part, tell: Tell) -> AsyncIterator[list[str]]:
        after = part.first_position - 1
        while after < part.last_position:
            rows = await self._event_log.read(
                after=after, limit=min(_PAGE, part.last_position - after)
            )
            if not rows:
                return  # What is missing is found when the file is read back.
            lines = []
            for row in rows:
                told = asdict(row) | {"data": json.loads(row.data), "hash": row.hash.hex()}
                told |= {"event_id": str(row.event_id), "recorded_at": instant(row.recorded_at)}
                del told["data_sha"]
                lines.append(json.dumps(told, ensure_ascii=False, separators=(",", ":")) + "\n")
            yield lines
            self._steps(Step.ARCHIVE_BEGUN)
            after = rows[-1].position
            tell(len(rows))

    async def _lease_pages(self, part: Part) -> AsyncIterator[list[str]]:
        after = ""
        while rows := await self._database.fetch(_LEASES.format(part=part.name), after):
            yield [dump(_plain(row)) + "\n" for row in rows]
            after = rows[-1]["mpack_id"]


def _plain(row: asyncpg.Record) -> dict[str, Any]:
    return {
        name: instant(value) if isinstance(value, datetime) else value
        for name, value in row.items()
    }
