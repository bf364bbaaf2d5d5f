"""The database: whether it answers and is ours, what we may do there, and what time it has."""

from __future__ import annotations

from collections.abc import AsyncIterator

from gateway.doctor.finding import Finding, ok, problem, warning
from gateway.service import Service, revision_of
from gateway.settings import Settings
from leases.clock import SystemClock
from leases.database import Database
from schema import revision

# PostgreSQL 15 is the first that has MERGE, which a rebuild uses.
_VERSION_MIN = 150_000

_SERVER = """
SELECT current_setting('server_version_num')::int AS number,
       current_setting('server_version') AS version, current_user AS role,
       current_setting('fsync') = 'on' AND current_setting('synchronous_commit') <> 'off' AS durable
"""
_WRITTEN = (
    *("repos", "objects", "segments", "mpack_index", "snapshots", "commits", "commit_graph"),
    *("introductions", "object_refs", "snapshot_refs", "commit_refs", "branches", "tags"),
    *("releases", "pack_slots"),
)
_MISSING = """
SELECT t.name || ': ' || string_agg(p.privilege, ', ' ORDER BY p.privilege) AS missing
  FROM unnest($1::text[]) AS t (name)
 CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS p (privilege)
 WHERE NOT has_table_privilege(t.name, p.privilege) GROUP BY t.name
UNION ALL
SELECT t.name || ': SELECT'
  FROM unnest(ARRAY['alembic_version', 'events', 'event_head', 'event_streams', 'mpack_leases',
                    'mpack_leases_fold', 'api_tokens']) AS t (name)
 WHERE NOT has_table_privilege(t.name, 'SELECT')
UNION ALL
SELECT 'api_tokens: ' || p.privilege FROM unnest(ARRAY['INSERT', 'UPDATE']) AS p (privilege)
 WHERE NOT has_table_privilege('api_tokens', p.privilege)
UNION ALL
SELECT 'mpack_leases.' || c.name || ': UPDATE'
  FROM unnest(ARRAY['attempts', 'next_attempt_at', 'last_error', 'claimed_by', 'claimed_until',
                    'claim_token']) AS c (name)
 WHERE NOT has_column_privilege('mpack_leases', c.name, 'UPDATE')
UNION ALL
SELECT p.proname || '(): EXECUTE' FROM pg_proc AS p
 WHERE p.proname = 'append_events'
   AND p.pronamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'events'::regclass)
   AND NOT has_function_privilege(p.oid, 'EXECUTE')
"""
_GUARDS = """
SELECT pg_has_role(c.relowner, 'USAGE') AS owns,
       (SELECT count(*) FROM pg_trigger AS t
         WHERE t.tgrelid = c.oid AND t.tgenabled <> 'D'
           AND t.tgname IN ('events_append_only', 'events_no_truncate')) AS guards
  FROM pg_class AS c WHERE c.oid = 'events'::regclass
"""


async def look_at_server(database: Database) -> Finding:
    """Errors: DatabaseUnavailable."""
    clock = SystemClock()
    asked_at = clock.monotonic()
    row = await database.row(_SERVER)
    took_ms = (clock.monotonic() - asked_at) * 1000
    seen = f"PostgreSQL {row['version']} as {row['role']}, answered in {took_ms:.0f} ms"
    if row["number"] < _VERSION_MIN:
        return problem("database", seen, mend="Use PostgreSQL 15 or newer.")
    if not row["durable"]:
        return warning(
            "database",
            f"{seen}; it does not wait for the disk",
            mend="Set fsync and synchronous_commit on: a commit that is lost loses leases.",
        )
    return ok("database", seen)


async def look_at_schema(database: Database) -> Finding:
    """The revision. Errors: DatabaseUnavailable."""
    found = await revision_of(database)
    if found == revision.HEAD:
        return ok("schema", f"at revision {found}")
    return problem(
        "schema",
        f"at revision {found or 'nothing'}, this release expects {revision.HEAD}",
        mend="Run `mpack-gateway db upgrade`, with this release, as the owner of the tables.",
    )


async def look_at_grants(database: Database) -> AsyncIterator[Finding]:
    """What the role may, and what it should not. Errors: DatabaseUnavailable."""
    missing = [row["missing"] for row in await database.fetch(_MISSING, list(_WRITTEN))]
    if missing:
        yield problem(
            "grants",
            f"missing: {'; '.join(missing)}",
            mend="Grant them to the service's role; the runbook has the statements.",
        )
    else:
        yield ok("grants", "everything that the service does is allowed")
    row = await database.row(_GUARDS)
    if row["guards"] < 2:
        yield problem(
            "append-only",
            "the triggers that protect the log are missing or switched off",
            mend="ALTER TABLE events ENABLE TRIGGER ALL; then `mpack-gateway audit verify`.",
        )
    elif row["owns"]:
        yield warning(
            "append-only",
            "the log refuses changes; but this role owns it, and could switch that off",
            mend="Let another role own the tables and migrate, and the service only use them.",
        )
    else:
        yield ok("append-only", "the log refuses changes, and this role cannot switch that off")


async def look_at_sessions(service: Service) -> AsyncIterator[Finding]:
    """What a transaction pooler would lose, and the clocks."""
    if service.engine.instance.is_live:
        yield ok("session lock", "held: a dead process is noticed within a second")
    else:
        yield problem(
            "session lock",
            "it cannot be held: the claims of a dead process last to their limit",
            mend="Behind a transaction pooler, set MPACK_DATABASE_DIRECT_URL to the database.",
        )
    clock, limit = service.engine.database_clock, service.settings.lease.clock_skew_max_seconds
    seen = f"this process's clock is {clock.skew_seconds:+.3f} s from the database's"
    if abs(clock.skew_seconds) > limit:
        yield warning("clock", seen, mend="Let both keep time by NTP.")
    else:
        yield ok("clock", seen)


def look_at_settings(settings: Settings) -> Finding:
    """What is allowed, and yet is not meant for production."""
    if settings.crash_at is not None:
        return problem(
            "settings",
            f"MPACK_CRASH_AT makes this process kill itself at {settings.crash_at}",
            mend="Unset it: it is for crash tests.",
        )
    return ok("settings", "they fit together")
