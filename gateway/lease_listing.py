"""Leases and events as operators look at them: filtered, in pages, by key and not by offset."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, get_args

import asyncpg

from gateway.id_prefix import CANDIDATES_MAX, only_one
from leases.database import Database
from leases.errors import InvalidRequest, LeaseMissing
from leases.lessor import lease_stream

PAGE_MAX = 1000  # Rows of a page; a page of leases is then about half a megabyte.
PAGE_DEFAULT = 100
StateFilter = Literal["reserved", "active", "reclaimed", "stuck", "due"]
STATES: tuple[str, ...] = get_args(StateFilter)

_PREFIX = re.compile(r"[0-9a-f]{1,32}\Z", re.ASCII)
_COLUMNS = (
    "mpack_id, kind, repo_id, object_id, storage_key, cache_key, state, sha256, size_bytes,"
    " granted_at, activated_at, expires_at, delete_at, revoked_at, stuck, reclaimed_at, outcome,"
    " lateness_ms, version, attempts, next_attempt_at, last_error, claimed_by, claimed_until"
)
# Written out and not bound: only so are the indexes of open leases used, which are few among all.
_IN_STATE: Mapping[StateFilter | None, str] = {
    None: "true",
    "reserved": "state = 'reserved' AND state <> 'reclaimed'",
    "active": "state = 'active' AND state <> 'reclaimed'",
    "reclaimed": "state = 'reclaimed'",
    "stuck": "stuck AND state <> 'reclaimed'",
    "due": "state <> 'reclaimed' AND delete_at <= statement_timestamp()",
}
# Ids begin with the time they were made at, so that the primary key lists the newest first.
_LEASES = f"""
SELECT {_COLUMNS} FROM mpack_leases
WHERE {{in_state}} AND ($1::text IS NULL OR repo_id = $1)
  AND ($2::timestamptz IS NULL OR granted_at >= $2)
  AND ($3::timestamptz IS NULL OR granted_at < $3)
  AND mpack_id >= $4 AND mpack_id < $5
ORDER BY mpack_id DESC LIMIT $6
"""  # noqa: S608  constants
_LEASE = f"SELECT {_COLUMNS} FROM mpack_leases WHERE mpack_id = $1"  # noqa: S608  constants
_STARTING_WITH = """
SELECT mpack_id FROM mpack_leases WHERE mpack_id >= $1 AND mpack_id < $2
ORDER BY mpack_id LIMIT $3
"""
_STUCK = "SELECT mpack_id FROM mpack_leases WHERE stuck AND state <> 'reclaimed' ORDER BY mpack_id"
EVENT_COLUMNS = (
    "position, event_id, stream, version, type, schema_version, data, actor, request_id,"
    " recorded_at, hash"
)
_EVENTS = f"""
SELECT {EVENT_COLUMNS} FROM events
WHERE position > $1 AND ($2::text IS NULL OR stream = $2) AND ($3::text IS NULL OR type = $3)
ORDER BY position LIMIT $4
"""  # noqa: S608  constants
_AFTER_ALL_IDS = "g"  # Sorts behind every hexadecimal digit.


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseFilter:
    """Which leases to list; None leaves that question open."""

    repo_id: str | None = None
    state: StateFilter | None = None
    granted_from: datetime | None = None
    granted_before: datetime | None = None
    id_prefix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Some rows, and the cursor of the page behind them; None when this was the last."""

    rows: list[dict[str, Any]]
    next: str | None


class LeaseListing:
    """Reads the lease table and the log; writes nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def leases(
        self, wanted: LeaseFilter, *, limit: int = PAGE_DEFAULT, cursor: str | None = None
    ) -> Page:
        """A page of leases, the newest id first."""
        if wanted.id_prefix:
            check_prefix(wanted.id_prefix)
        if cursor is not None:
            check_prefix(cursor)
        end = wanted.id_prefix + _AFTER_ALL_IDS
        rows = await self._database.fetch(
            _LEASES.format(in_state=_IN_STATE[wanted.state]),
            wanted.repo_id,
            wanted.granted_from,
            wanted.granted_before,
            wanted.id_prefix,
            end if cursor is None else min(cursor, end),
            limit + 1,
        )
        more = len(rows) > limit
        shown = [dict(row) for row in rows[:limit]]
        return Page(rows=shown, next=shown[-1]["mpack_id"] if more else None)

    async def lease(self, mpack_id: str) -> dict[str, Any]:
        """One lease with its events, oldest first.

        Errors: LeaseMissing.
        """
        row = await self._database.fetchrow(_LEASE, mpack_id)
        if row is None:
            raise LeaseMissing(mpack_id=mpack_id)
        page = await self.events(after=0, stream=lease_stream(mpack_id), limit=PAGE_MAX)
        return dict(row) | {"events": page.rows}

    async def resolve(self, prefix: str) -> str:
        """The one id that begins with this.

        Errors: LeaseMissing; InvalidRequest for more than one.
        """
        check_prefix(prefix)
        rows = await self._database.fetch(
            _STARTING_WITH, prefix, prefix + _AFTER_ALL_IDS, CANDIDATES_MAX
        )
        missing = LeaseMissing(mpack_id=prefix)
        return only_one([row["mpack_id"] for row in rows], prefix, missing=missing)

    async def stuck_ids(self) -> list[str]:
        """Every stuck lease, the oldest first."""
        return [row["mpack_id"] for row in await self._database.fetch(_STUCK)]

    async def events(
        self,
        *,
        after: int = 0,
        stream: str | None = None,
        type: str | None = None,  # noqa: A002  the column's and the parameter's name
        limit: int = PAGE_DEFAULT,
    ) -> Page:
        """A page of the log, in order; the cursor is the position to go on after."""
        rows = await self._database.fetch(_EVENTS, after, stream, type, limit + 1)
        more = len(rows) > limit
        shown = [event_map(row) for row in rows[:limit]]
        return Page(rows=shown, next=str(shown[-1]["position"]) if more else None)


def check_prefix(text: str) -> None:
    """Refuse what no id begins with."""
    if _PREFIX.match(text) is None:
        raise InvalidRequest("An mpack_id is 32 lower-case hex digits; its beginning is enough.")


def event_map(row: asyncpg.Record | Mapping[str, Any]) -> dict[str, Any]:
    """An event as it is shown: its data as a map, its hash in hex."""
    shown = dict(row)
    shown["event_id"] = str(shown["event_id"])
    shown["data"] = json.loads(shown["data"])
    shown["hash"] = bytes(shown["hash"]).hex()
    return shown
