"""What became of the leases in a span of time, from the log alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from leases.beginning import beginning_of
from leases.database import Database

_AT = "SELECT recorded_at FROM events WHERE position = $1"
_HEAD = "SELECT position, recorded_at FROM event_head"
_TYPES = """
SELECT type, count(*) AS events FROM events
WHERE position > $1 AND position <= $2 GROUP BY type ORDER BY type
"""
# A deletion that was recorded before its deadline would be a broken promise: `early`.
_RECLAIMED = """
SELECT count(*) AS reclaimed, count(DISTINCT e.stream) AS leases,
       count(*) FILTER (WHERE e.fact ->> 'outcome' = 'forgotten') AS forgotten,
       count(*) FILTER (WHERE (e.fact ->> 'reclaimed_at')::timestamptz < l.delete_at) AS early,
       count(*) FILTER (WHERE e.lateness_ms <= 1000) AS within_a_second,
       COALESCE(max(e.lateness_ms), 0) AS lateness_ms_max,
       COALESCE(percentile_disc(0.5) WITHIN GROUP (ORDER BY e.lateness_ms), 0) AS lateness_ms_p50,
       COALESCE(percentile_disc(0.99) WITHIN GROUP (ORDER BY e.lateness_ms), 0) AS lateness_ms_p99
FROM (SELECT stream, data::jsonb AS fact, ((data::jsonb) ->> 'lateness_ms')::bigint AS lateness_ms
      FROM events
      WHERE position > $1 AND position <= $2 AND type = 'lease.reclaimed') AS e
LEFT JOIN mpack_leases AS l ON l.mpack_id = substr(e.stream, 7)
"""
_BY_OUTCOME = """
SELECT (data::jsonb) ->> 'outcome' AS outcome, (data::jsonb) ->> 'trigger' AS trigger,
       count(*) AS leases
FROM events WHERE position > $1 AND position <= $2 AND type = 'lease.reclaimed'
GROUP BY 1, 2 ORDER BY 1, 2
"""
_OPERATED = """
SELECT position, recorded_at, type, stream, actor, (data::jsonb) ->> 'reason' AS reason
FROM events
WHERE position > $1 AND position <= $2
  AND (type IN ('lease.stuck', 'lease.retried', 'lease.adopted', 'lease.residue_deleted',
                'reaping.paused', 'reaping.resumed', 'repo.deleted', 'object.purged')
       OR (type = 'lease.reclaimed' AND (data::jsonb) ->> 'outcome' = 'forgotten')
       OR (type = 'lease.revoked' AND actor LIKE 'command%'))
ORDER BY position DESC LIMIT $3
"""
_SHOWN_MAX = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Counts of a span of the log, and the newest hundred things out of the ordinary in it."""

    since: datetime | None
    until: datetime
    first_position: int
    last_position: int
    by_type: Mapping[str, int]
    reclaimed: Mapping[str, int]
    by_outcome: list[Mapping[str, Any]]
    out_of_the_ordinary: list[Mapping[str, Any]]

    @property
    def twice(self) -> int:
        """How many leases have more than one `lease.reclaimed`; the database allows none."""
        return self.reclaimed["reclaimed"] - self.reclaimed["leases"]

    @property
    def ok(self) -> bool:
        """Whether no blob went before its time, and none twice."""
        return not self.reclaimed["early"] and not self.twice

    def in_words(self) -> str:
        """The promise, and what is known of it."""
        found, gone = self.reclaimed, self.reclaimed["reclaimed"] - self.reclaimed["forgotten"]
        return (
            f"{gone:,} packs deleted, {found['early']:,} before their deadline,"
            f" {self.twice:,} twice; {found['within_a_second']:,} within a second of it, the"
            f" latest {found['lateness_ms_max'] / 1000:,.3f} s after it."
        )


async def position_at(database: Database, moment: datetime) -> int:
    """The last position that was recorded before this moment.

    By halving: positions and times grow together, and no index on the time is needed. What is
    archived was recorded before all that is asked for.
    """
    head = await database.row(_HEAD)
    below, above = (await beginning_of(database)).position, int(head["position"])
    if head["recorded_at"] < moment:
        return above
    while below < above:
        middle = (below + above + 1) // 2
        row = await database.fetchrow(_AT, middle)
        if row is not None and row["recorded_at"] < moment:
            below = middle
        else:
            above = middle - 1
    return below


async def make_report(
    database: Database, *, since: datetime | None, until: datetime | None
) -> Report:
    """What was recorded from `since` (None: ever) to before `until` (None: now).

    Reads the log of that span, and of the lease table the rows that were reclaimed in it.
    """
    first = 0 if since is None else await position_at(database, since)
    head = await database.row("SELECT position, clock_timestamp() AS now FROM event_head")
    last = int(head["position"]) if until is None else await position_at(database, until)
    types = await database.fetch(_TYPES, first, last)
    reclaimed = await database.row(_RECLAIMED, first, last)
    return Report(
        since=since,
        until=until or head["now"],
        first_position=min(first + 1, last),
        last_position=last,
        by_type={row["type"]: row["events"] for row in types},
        reclaimed=dict(reclaimed),
        by_outcome=[dict(row) for row in await database.fetch(_BY_OUTCOME, first, last)],
        out_of_the_ordinary=[
            dict(row) for row in await database.fetch(_OPERATED, first, last, _SHOWN_MAX)
        ],
    )
