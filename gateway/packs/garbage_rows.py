"""The SQL of `gc`: what is held, what is not, and what hangs on a row that goes."""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy import text
from sqlalchemy.sql.elements import TextClause


class Kind(StrEnum):
    """What can be removed; the first four and `SEGMENT` are named in events."""

    REPO = "repo"
    COMMIT = "commit"
    SNAPSHOT = "snapshot"
    OBJECT = "object"
    SEGMENT = "segment"
    BLOB = "blob"
    JOINED = "joined"
    FAILED = "failed"


GONE = "(SELECT repo_id FROM repos WHERE deleted_at IS NOT NULL)"


def _unheld(table: str, column: str, of: str) -> str:
    """No living repo's membership names it; of repos without a row nobody says that they died."""
    return (
        f"NOT EXISTS (SELECT FROM {table} AS r WHERE r.{column} = {of}.{column}"
        f" AND r.repo_id NOT IN {GONE})"
    )


_DEAD_COMMITS = f"FROM commits AS c WHERE {_unheld('commit_refs', 'commit_id', 'c')}"
# A base is needed by what is a delta on it, and that by the next one.
_KEPT_SNAPSHOTS = f"""
WITH RECURSIVE kept (snapshot_id) AS (
    SELECT snapshot_id FROM snapshot_refs WHERE repo_id NOT IN {GONE}
  UNION
    SELECT replace(named.snapshot_id, 'sha256:', '') FROM commit_refs AS r
     CROSS JOIN LATERAL (
           SELECT c.snapshot_id FROM commits AS c WHERE c.commit_id = r.commit_id
            UNION ALL
           SELECT g.snapshot_id FROM commit_graph AS g WHERE g.commit_id = r.commit_id) AS named
     WHERE r.repo_id NOT IN {GONE} AND named.snapshot_id IS NOT NULL
  UNION
    SELECT s.base_snapshot_id FROM kept JOIN snapshots AS s USING (snapshot_id)
     WHERE s.base_snapshot_id IS NOT NULL)
"""  # noqa: S608  constants
_DEAD_SNAPSHOTS = """
FROM snapshots AS s WHERE NOT EXISTS (SELECT FROM kept WHERE kept.snapshot_id = s.snapshot_id)
"""
_LEAVES = """
AND NOT EXISTS (SELECT FROM snapshots AS d WHERE d.base_snapshot_id = s.snapshot_id)
"""
DEAD_OBJECTS = f"""
FROM objects AS o WHERE {_unheld("object_refs", "object_id", "o")}
 AND NOT EXISTS (SELECT FROM introductions AS i JOIN commit_refs AS r USING (commit_id)
                  WHERE i.object_id = o.object_id AND r.repo_id NOT IN {GONE})
 AND NOT EXISTS (SELECT FROM unnest(CAST(:spared AS text[])) AS one (object_id)
                  WHERE one.object_id = o.object_id)
"""  # noqa: S608  constants
_UNFINISHED = """
s.state = 'pending' AND s.codec <> 'condemned'
AND s.created_at < clock_timestamp()
    - CASE s.codec WHEN 'joined' THEN CAST(:kept AS interval) ELSE CAST(:age AS interval) END
"""

FIND: dict[Kind, TextClause] = {
    Kind.COMMIT: text(
        f"SELECT c.commit_id AS entity_id, c.xmin::text AS row_version {_DEAD_COMMITS} LIMIT :limit"
    ),
    Kind.SNAPSHOT: text(
        f"{_KEPT_SNAPSHOTS} SELECT s.snapshot_id AS entity_id, s.xmin::text AS row_version"
        f" {_DEAD_SNAPSHOTS} {_LEAVES} LIMIT :limit"
    ),
    Kind.OBJECT: text(
        f"SELECT o.object_id AS entity_id, o.xmin::text AS row_version {DEAD_OBJECTS} LIMIT :limit"
    ),
}
_COUNT = "SELECT count(*) AS count, CAST(0 AS bigint) AS size_bytes"
COUNTS: dict[Kind, TextClause] = {
    Kind.REPO: text(f"{_COUNT} FROM repos WHERE deleted_at IS NOT NULL"),
    Kind.COMMIT: text(f"{_COUNT} {_DEAD_COMMITS}"),
    Kind.SNAPSHOT: text(f"{_KEPT_SNAPSHOTS} {_COUNT} {_DEAD_SNAPSHOTS}"),
    Kind.OBJECT: text(
        "SELECT count(*) AS count, COALESCE(sum(o.size_bytes), 0)::bigint AS size_bytes"
        f" {DEAD_OBJECTS}"
    ),
    Kind.SEGMENT: text(f"""
        WITH dead AS MATERIALIZED (SELECT o.object_id {DEAD_OBJECTS}),
             kept AS MATERIALIZED (
                 SELECT DISTINCT i.mpack_id FROM mpack_index AS i
                   LEFT JOIN dead AS d ON d.object_id = i.entity_id AND i.entity_type = 'object'
                  WHERE d.object_id IS NULL)
        SELECT count(*) AS count, COALESCE(sum(s.size_bytes), 0)::bigint AS size_bytes
        FROM segments AS s LEFT JOIN kept ON kept.mpack_id = s.mpack_id
        WHERE s.codec = 'condemned' OR {_UNFINISHED}
           OR (s.state = 'live' AND kept.mpack_id IS NULL)
    """),  # noqa: S608  constants
}

_KEYS = {
    Kind.COMMIT: ("commits", "commit_id"),
    Kind.SNAPSHOT: ("snapshots", "snapshot_id"),
    Kind.OBJECT: ("objects", "object_id"),
}
# What a push has locked it is about to touch: that is left alone, and nobody waits.
LOCK: dict[Kind, TextClause] = {
    kind: text(
        f"SELECT {key} FROM {table} WHERE {key} = ANY(CAST(:ids AS text[]))"  # noqa: S608  constants
        f" ORDER BY {key} FOR UPDATE SKIP LOCKED"
    )
    for kind, (table, key) in _KEYS.items()
}
DELETE: dict[Kind, TextClause] = {
    kind: text(
        f"DELETE FROM {table} AS t"  # noqa: S608  constants
        " USING unnest(CAST(:ids AS text[]), CAST(:versions AS text[])) AS found (id, version)"
        f" WHERE t.{key} = found.id AND t.xmin::text = found.version RETURNING t.{key}"
    )
    for kind, (table, key) in _KEYS.items()
}


def _unindexed(kind: Kind) -> TextClause:
    """Index rows go; a blob of other code that nothing points to any more becomes a segment."""
    mine = f"i.entity_type = '{kind.value}' AND i.entity_id = ANY(CAST(:ids AS text[]))"
    return text(f"""
        WITH gone AS (DELETE FROM mpack_index AS i WHERE {mine} RETURNING i.mpack_id)
        INSERT INTO segments (mpack_id, storage_key, state, codec)
        SELECT DISTINCT g.mpack_id, 'segments/' || g.mpack_id, 'live', 'foreign' FROM gone AS g
        WHERE NOT EXISTS (SELECT FROM segments AS s WHERE s.mpack_id = g.mpack_id)
          AND NOT EXISTS (SELECT FROM mpack_index AS i
                           WHERE i.mpack_id = g.mpack_id AND NOT ({mine}))
        ON CONFLICT DO NOTHING
    """)  # noqa: S608  constants


DELETE_WITH: dict[Kind, tuple[TextClause, ...]] = {
    Kind.COMMIT: (
        text("DELETE FROM commit_graph WHERE commit_id = ANY(CAST(:ids AS text[]))"),
        text("DELETE FROM introductions WHERE commit_id = ANY(CAST(:ids AS text[]))"),
        _unindexed(Kind.COMMIT),
    ),
    Kind.SNAPSHOT: (_unindexed(Kind.SNAPSHOT),),
    Kind.OBJECT: (_unindexed(Kind.OBJECT),),
}

FOREIGN_SNAPSHOTS = text(f"""
SELECT DISTINCT replace(c.snapshot_id, 'sha256:', '') FROM commits AS c
 WHERE c.record IS NULL AND c.snapshot_id IS NOT NULL
   AND NOT ({_unheld("commit_refs", "commit_id", "c")})
 ORDER BY 1""")  # noqa: S608  constants

# Repos. ------------------------------------------------------------------------------------------

_MEMBERSHIP = ("object_refs", "snapshot_refs", "commit_refs", "branches", "tags", "releases")
DELETED_REPOS = "SELECT repo_id FROM repos WHERE deleted_at IS NOT NULL ORDER BY repo_id"
MEMBERS_BATCH = tuple(
    f"DELETE FROM {table} WHERE ctid = ANY(ARRAY("  # noqa: S608  constants
    f"SELECT ctid FROM {table} WHERE repo_id = $1 LIMIT $2))"
    for table in _MEMBERSHIP
)
LOCK_REPO = text("""
SELECT owner, slug FROM repos WHERE repo_id = :repo_id AND deleted_at IS NOT NULL FOR UPDATE""")
MEMBERS_REST = tuple(
    text(f"DELETE FROM {table} WHERE repo_id = :repo_id")  # noqa: S608  constants
    for table in _MEMBERSHIP
)
DELETE_REPO = text("DELETE FROM repos WHERE repo_id = :repo_id")

# Segments. ---------------------------------------------------------------------------------------

# Locked first and judged by the next statement: only that one sees what a push has committed
# between the look and the lock.
LOCK_SEGMENTS = text(f"""
SELECT s.mpack_id FROM segments AS s
 WHERE s.codec <> 'condemned' AND (s.state = 'live' OR {_UNFINISHED})
   AND NOT EXISTS (SELECT FROM mpack_index AS i WHERE i.mpack_id = s.mpack_id)
 LIMIT :limit FOR UPDATE SKIP LOCKED""")  # noqa: S608  constants
CONDEMN = text("""
UPDATE segments AS s SET state = 'pending', codec = 'condemned'
 WHERE s.mpack_id = ANY(CAST(:ids AS text[]))
   AND NOT EXISTS (SELECT FROM mpack_index AS i WHERE i.mpack_id = s.mpack_id)
RETURNING s.mpack_id, s.size_bytes""")
CONDEMNED = """
SELECT mpack_id, storage_key FROM segments
 WHERE codec = 'condemned' AND mpack_id > $1 ORDER BY mpack_id LIMIT $2"""
FORGET_CONDEMNED = """
DELETE FROM segments WHERE mpack_id = ANY($1::text[]) AND codec = 'condemned'"""
