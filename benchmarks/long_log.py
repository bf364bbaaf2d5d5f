"""A long log of leases that have lived and ended, appended by the database's own function."""

from __future__ import annotations

import asyncpg

from benchmarks.place import Home

LEASES, LEASES_QUICK = 1_000_000, 2_000
_PER_CALL = 1000

# Each lease is reserved, activated and reclaimed; but the last tenth is open for a day to come.
_FILL = """
DO $fill$
DECLARE
    log_id text := (SELECT h.log_id FROM event_head AS h);
    moment text := '2026-01-01T00:00:00.000000Z';
    later text := to_char(clock_timestamp() AT TIME ZONE 'UTC' + interval '1 day',
                          'YYYY-MM-DD"T"HH24:MI:SS.US"Z"');
    deadline text;
    ids text[];
    facts text[];
    per_call int := {per_call};
BEGIN
    FOR batch IN 0 .. {leases} / per_call - 1 LOOP
        SELECT array_agg('0190' || lpad(to_hex(n), 8, '0') || '70008'
                         || substr(md5(n::text), 1, 15) ORDER BY n) INTO ids
        FROM generate_series(batch * per_call + 1, (batch + 1) * per_call) AS n;
        deadline := CASE WHEN batch >= {leases} / per_call * 9 / 10 THEN later ELSE moment END;
        SELECT array_agg(format(
            '{{"delete_at":"%s","granted_at":"%s","kind":"pack","replica":"free.benchmark",'
            '"repo_id":"repo-%s","storage_key":"transient/%s/%s"}}',
            moment, moment, n % 1000, log_id, ids[n]) ORDER BY n) INTO facts
        FROM generate_series(1, per_call) AS n;
        PERFORM append_events(
            array_fill(0, ARRAY[per_call]), streams, array_fill(0, ARRAY[per_call]), event_ids,
            array_fill('lease.reserved'::text, ARRAY[per_call]), forms, facts, actors, actors,
            nulls_at, nulls)
        FROM (SELECT array_agg('lease/' || id) AS streams,
                     array_agg(gen_random_uuid()) AS event_ids,
                     array_fill(1::smallint, ARRAY[per_call]) AS forms,
                     array_fill('token:benchmark'::text, ARRAY[per_call]) AS actors,
                     array_fill(NULL::timestamptz, ARRAY[per_call]) AS nulls_at,
                     array_fill(NULL::text, ARRAY[per_call]) AS nulls
              FROM unnest(ids) AS id) AS asked;
        PERFORM append_events(
            array_fill(0, ARRAY[per_call]), streams, array_fill(1, ARRAY[per_call]), event_ids,
            array_fill('lease.activated'::text, ARRAY[per_call]), forms, told, actors, actors,
            nulls_at, nulls)
        FROM (SELECT array_agg('lease/' || id) AS streams,
                     array_agg(gen_random_uuid()) AS event_ids,
                     array_agg(format(
                         '{{"activated_at":"%s","delete_at":"%s","expires_at":"%s",'
                         '"replica":"free.benchmark","sha256":"%s","size_bytes":16384,'
                         '"ttl_seconds":300.0}}',
                         moment, deadline, deadline, repeat('0', 64))) AS told,
                     array_fill(1::smallint, ARRAY[per_call]) AS forms,
                     array_fill('token:benchmark'::text, ARRAY[per_call]) AS actors,
                     array_fill(NULL::timestamptz, ARRAY[per_call]) AS nulls_at,
                     array_fill(NULL::text, ARRAY[per_call]) AS nulls
              FROM unnest(ids) AS id) AS asked;
        IF deadline = moment THEN
            PERFORM append_events(
                array_fill(0, ARRAY[per_call]), streams, array_fill(2, ARRAY[per_call]), event_ids,
                array_fill('lease.reclaimed'::text, ARRAY[per_call]), forms, told, actors, nulls,
                nulls_at, nulls)
            FROM (SELECT array_agg('lease/' || id) AS streams,
                         array_agg(gen_random_uuid()) AS event_ids,
                         array_agg(format(
                             '{{"lateness_ms":3,"outcome":"deleted","reclaimed_at":"%s",'
                             '"replica":"free.benchmark","trigger":"alarm"}}', moment)) AS told,
                         array_fill(1::smallint, ARRAY[per_call]) AS forms,
                         array_fill('reaper'::text, ARRAY[per_call]) AS actors,
                         array_fill(NULL::timestamptz, ARRAY[per_call]) AS nulls_at,
                         array_fill(NULL::text, ARRAY[per_call]) AS nulls
                  FROM unnest(ids) AS id) AS asked;
        END IF;
        COMMIT;
    END LOOP;
END $fill$
"""


async def fill(home: Home, leases: int) -> None:
    """Append the lives of so many leases, a thousand events a call, and let the server settle."""
    connection = await asyncpg.connect(home.driver_url)
    try:
        await connection.execute(_FILL.format(leases=leases, per_call=_PER_CALL))
        for statement in ("VACUUM ANALYZE", "CHECKPOINT"):
            await connection.execute(statement)
    finally:
        await connection.close()
