"""How much of each quota is used, and by whom most: for `stats` and `doctor`."""

from __future__ import annotations

from dataclasses import dataclass

from leases.database import Database
from leases.policy import LeasePolicy
from leases.room import Limit, limits_of

_USAGE = """
SELECT COALESCE(sum(leases), 0)::bigint AS leases,
       COALESCE(max(leases), 0)::bigint AS leases_most,
       COALESCE(sum(bytes), 0)::bigint AS bytes,
       COALESCE(max(bytes), 0)::bigint AS bytes_most,
       (array_agg(repo_id ORDER BY leases DESC, repo_id))[1] AS leases_by,
       (array_agg(repo_id ORDER BY bytes DESC, repo_id))[1] AS bytes_by
FROM (
    SELECT repo_id, count(*) AS leases, COALESCE(sum(size_bytes), 0)
           + $1::bigint * count(*) FILTER (WHERE kind = 'upload' AND size_bytes IS NULL) AS bytes
    FROM mpack_leases WHERE state <> 'reclaimed' GROUP BY repo_id) AS repos
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """One quota: what is used of it; of one per repo, by the repo that uses most."""

    quota: str
    used: int
    at_most: int
    repo_id: str | None

    def in_words(self) -> str:
        """For people."""
        whose = "" if self.repo_id is None else f", the most, by {self.repo_id}"
        return f"{self.used:,} of {self.at_most:,}{whose}"


async def read_usage(
    database: Database, policy: LeasePolicy, *, upload_bytes_max: int
) -> list[Usage]:
    """Every quota that is set. One statement, which reads the open leases; none without quotas.

    Errors: DatabaseUnavailable.
    """
    limits = limits_of(policy)
    if not limits:
        return []
    row = await database.row(_USAGE, upload_bytes_max)

    def usage(limit: Limit) -> Usage:
        what = "bytes" if limit.in_bytes else "leases"
        used = row[f"{what}_most" if limit.per_repo else what]
        by = row[f"{what}_by"] if limit.per_repo else None
        return Usage(quota=limit.name, used=used, at_most=limit.at_most, repo_id=by)

    return [usage(limit) for limit in limits]
