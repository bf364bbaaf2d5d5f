"""The SQL of joining small segments."""

from __future__ import annotations

from sqlalchemy import text

from gateway.packs.garbage_rows import DEAD_OBJECTS, GONE

# Only segments that hold nothing but objects at known places; by repo, then as they were pushed.
# Joins all of them, so that each table is gone through once: an IN that does not fit into memory is
# a walk through its list for every row.
_FIND = """
WITH dead (object_id) AS MATERIALIZED ({dead}),
     small AS MATERIALIZED (
         SELECT mpack_id, storage_key, size_bytes FROM segments
          WHERE state = 'live' AND codec = 'raw' AND size_bytes <= :small),
     held AS MATERIALIZED (
         SELECT i.mpack_id, count(*) AS entries, min(i.entity_id) AS one,
                bool_and(i.entity_type = 'object' AND i.byte_offset + i.byte_length IS NOT NULL)
                    AS own
           FROM small JOIN mpack_index AS i USING (mpack_id)
           LEFT JOIN dead AS d ON d.object_id = i.entity_id AND i.entity_type = 'object'
          WHERE d.object_id IS NULL GROUP BY i.mpack_id),
     holder AS (
         SELECT r.object_id, min(r.repo_id) AS repo_id
           FROM object_refs AS r JOIN (SELECT DISTINCT one FROM held) AS h ON h.one = r.object_id
          WHERE r.repo_id NOT IN {gone} GROUP BY r.object_id)
SELECT s.mpack_id, s.storage_key, s.size_bytes, held.entries, COALESCE(holder.repo_id, '')
  FROM small AS s JOIN held USING (mpack_id) LEFT JOIN holder ON holder.object_id = held.one
 WHERE held.own ORDER BY holder.repo_id, s.mpack_id LIMIT :limit"""
FIND = text(_FIND.format(dead="SELECT object_id FROM objects WHERE false", gone=GONE))
FIND_AFTER_GC = text(_FIND.format(dead=f"SELECT o.object_id {DEAD_OBJECTS}", gone=GONE))

ENTRIES = text("""
SELECT i.entity_id, i.mpack_id, i.byte_offset, i.byte_length, COALESCE(o.path, '')
  FROM mpack_index AS i LEFT JOIN objects AS o ON o.object_id = i.entity_id
 WHERE i.mpack_id = ANY(CAST(:ids AS text[])) AND i.entity_type = 'object'
 ORDER BY i.mpack_id, i.byte_offset""")
PENDING = """
INSERT INTO segments (mpack_id, storage_key, state, codec) VALUES ($1, $2, 'pending', 'joining')"""

IS_LIVE = text("""
SELECT EXISTS (SELECT FROM segments WHERE mpack_id = :new AND state = 'live')""")
LOCK_OBJECTS = text("""
SELECT object_id FROM objects WHERE object_id = ANY(CAST(:ids AS text[]))
 ORDER BY object_id FOR UPDATE""")
LOCK_OLD = text("""
SELECT mpack_id FROM segments
 WHERE mpack_id = ANY(CAST(:old AS text[])) AND state = 'live' AND codec = 'raw'
 ORDER BY mpack_id FOR UPDATE""")
UNINDEX = text("""
DELETE FROM mpack_index WHERE mpack_id = ANY(CAST(:old AS text[])) RETURNING entity_id""")
INDEX = text("""
INSERT INTO mpack_index (entity_type, entity_id, mpack_id, byte_offset, byte_length)
SELECT 'object', entity_id, :new, byte_offset, byte_length
  FROM unnest(CAST(:ids AS text[]), CAST(:offsets AS bigint[]), CAST(:lengths AS bigint[]))
       AS new (entity_id, byte_offset, byte_length)""")
# Its change is also the touch by which a `gc` under way sees that these rows are in use.
MOVE_OBJECTS = text("""
UPDATE objects SET storage_uri = :key WHERE object_id = ANY(CAST(:ids AS text[]))""")
# What is pending goes some time after it was begun: from now on that is counted.
RETIRE = text("""
UPDATE segments SET state = 'pending', codec = 'joined', created_at = clock_timestamp()
 WHERE mpack_id = ANY(CAST(:old AS text[]))""")
LIVE = text("""
UPDATE segments SET state = 'live', codec = 'raw', size_bytes = :size_bytes, sha256 = :sha256
 WHERE mpack_id = :new AND codec = 'joining' RETURNING mpack_id""")
CONDEMN = """
INSERT INTO segments (mpack_id, storage_key, state, codec) VALUES ($1, $2, 'pending', 'condemned')
ON CONFLICT (mpack_id) DO UPDATE SET codec = 'condemned'"""
FORGET = "DELETE FROM segments WHERE mpack_id = $1 AND codec = 'condemned'"
