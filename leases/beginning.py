"""Where the log in the database begins: at its first event, or behind what was archived."""

from __future__ import annotations

import json
from dataclasses import dataclass
from uuid import UUID

from leases.chain import genesis
from leases.database import Database

# What was taken out of the database is named in the log itself, so that the chain proves it.
ARCHIVE_STREAM = "log/archive"
NEWEST_ARCHIVE = f"""
SELECT h.log_id, e.data FROM event_head AS h
LEFT JOIN event_streams AS s ON s.stream = '{ARCHIVE_STREAM}'
LEFT JOIN events AS e ON e.position = s.last_position
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """The position and hash in front of the first event that the database holds."""

    position: int
    hash: bytes


async def beginning_of(database: Database) -> Beginning:
    """Where it begins now. Errors: DatabaseUnavailable."""
    row = await database.row(NEWEST_ARCHIVE)
    return beginning(row["log_id"], row["data"])


def beginning(log_id: UUID, archived: str | None) -> Beginning:
    """The same from the newest `log.archived` (None: there is none)."""
    if archived is None:
        return Beginning(position=0, hash=genesis(log_id))
    fact = json.loads(archived)
    return Beginning(position=int(fact["last_position"]), hash=bytes.fromhex(fact["hash"]))
