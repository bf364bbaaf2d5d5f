-- The event log: one head row, one append function, partitions, and the lease projection's fold.
-- The hash takes texts as they are stored, so the database's encoding must be UTF-8.
-- :schema is replaced by the quoted name of the schema that the migration runs in.

DO $$ BEGIN
    IF current_setting('server_encoding') <> 'UTF8' THEN
        RAISE EXCEPTION 'the database must be created with ENCODING UTF8';
    END IF;
END $$;

CREATE FUNCTION event_partition_size() RETURNS bigint LANGUAGE sql IMMUTABLE AS 'SELECT 10000000';

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the event log is append-only: % on % refused', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation';
END $$;

CREATE TRIGGER events_append_only BEFORE UPDATE OR DELETE ON events
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER events_no_truncate BEFORE TRUNCATE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Makes partition `number` unless it is there. Made as a table and then attached, because that
-- takes no lock that stops readers or writers of the other partitions.
CREATE FUNCTION make_event_partition(number bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = :schema, pg_temp AS $$
DECLARE
    name text := 'events_p' || lpad(number::text, 6, '0');
    size bigint := event_partition_size();
BEGIN
    IF to_regclass(name) IS NOT NULL THEN
        RETURN;
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE events INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', name);
    EXECUTE format('ALTER TABLE %I ADD CONSTRAINT %I UNIQUE (event_id)', name, 'uq_' || name || '_event_id');
    EXECUTE format('ALTER TABLE %I ADD CONSTRAINT %I UNIQUE (stream, version)', name, 'uq_' || name || '_stream_version');
    EXECUTE format('CREATE TRIGGER events_no_truncate BEFORE TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()', name);
    EXECUTE format('ALTER TABLE events ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', name, number * size, (number + 1) * size);
END $$;

SELECT make_event_partition(0);

INSERT INTO event_head (id, log_id, position, hash, recorded_at)
SELECT 1, log_id, 0, sha256(uuid_send(log_id)), clock_timestamp()
FROM (SELECT gen_random_uuid() AS log_id) AS new;

-- The chain as a window aggregate: the first value is the previous hash itself. What is hashed of an
-- event is each field's length as four bytes and then its bytes; NULL is the length -1.
CREATE FUNCTION hash_chain_next(previous bytea, fields bytea) RETURNS bytea
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$ BEGIN RETURN sha256(previous || fields); END $$;
CREATE AGGREGATE hash_chain(bytea) (SFUNC = hash_chain_next, STYPE = bytea);

-- The one way into the log. One row per event asked for, in order, with its verdict:
--   ok        appended
--   repeat    this very event stands at its place already (an earlier answer was lost)
--   version   the stream is not at the expected version
--   deadline  not_after has passed, by this database's clock, read while the head is locked
--   claim     'none': a claim is live; a token: the lease is not claimed with it
--   group     another event of the same group was refused
-- Events with one group number are all appended or none; at most one event per stream in a call.
-- Call it as the last statement before COMMIT. Lock order: domain rows, head, lease rows.
CREATE FUNCTION append_events(
    groups int[], streams text[], expected int[], event_ids uuid[], types text[],
    schema_versions smallint[], datas text[], actors text[], request_ids text[],
    not_afters timestamptz[], claims text[])
RETURNS TABLE (verdict text, event_position bigint, event_version int, event_recorded_at timestamptz)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = :schema, pg_temp
-- Planning the statement below costs more than running it.
SET plan_cache_mode = force_generic_plan SET jit = off SET enable_seqscan = off AS $$
DECLARE
    head event_head%ROWTYPE;
    moment timestamptz;
    moment_field bytea;
    size bigint := event_partition_size();
    highest bigint;
    accepted_count int;
BEGIN
    SELECT * INTO STRICT head FROM event_head WHERE id = 1 FOR UPDATE;
    -- A claim takes no head lock. Locking the lease row first means that either the claim is
    -- visible below, or it skips the row: an activation can never commit under a claim.
    IF 'none' = ANY (claims) THEN
        PERFORM FROM mpack_leases AS l
        WHERE l.mpack_id IN (SELECT substr(a.stream, 7)
                             FROM unnest(streams, claims) AS a (stream, claim) WHERE a.claim = 'none')
        ORDER BY l.mpack_id FOR UPDATE;
    END IF;
    moment := greatest(clock_timestamp(), head.recorded_at);
    moment_field := textsend(((extract(epoch FROM moment) * 1000000)::bigint)::text);
    moment_field := int4send(octet_length(moment_field)) || moment_field;
    -- Half a partition ahead, so that no append ever waits for one.
    highest := head.position + cardinality(streams) + size / 2;
    IF highest / size > (head.position + size / 2) / size THEN
        PERFORM make_event_partition(highest / size);
    END IF;

    RETURN QUERY
    WITH asked AS (
        SELECT * FROM unnest(groups, streams, expected, event_ids, types, schema_versions, datas,
                             actors, request_ids, not_afters, claims)
        WITH ORDINALITY AS a (grp, stream, expected, event_id, type, schema_version, data, actor,
                              request_id, not_after, claim, ord)
    ), judged AS (
        SELECT a.*, coalesce(s.version, 0) + 1 AS version, CASE
            WHEN s.version > a.expected AND a.event_id = (
                SELECT e.event_id FROM events AS e
                WHERE e.stream = a.stream AND e.version = a.expected + 1) THEN 'repeat'
            WHEN a.expected IS NULL AND EXISTS (
                SELECT FROM events AS e WHERE e.event_id = a.event_id) THEN 'repeat'
            WHEN a.expected <> coalesce(s.version, 0) THEN 'version'
            WHEN a.not_after < moment THEN 'deadline'
            WHEN a.claim = 'none' THEN CASE WHEN l.claimed_until > moment THEN 'claim' ELSE 'ok' END
            WHEN a.claim IS NOT NULL AND l.claim_token IS DISTINCT FROM a.claim::uuid THEN 'claim'
            ELSE 'ok' END AS own_verdict
        FROM asked AS a
        -- LIMIT keeps these look-ups in the index, whatever the planner thinks of the tables.
        LEFT JOIN LATERAL (SELECT version FROM event_streams
                           WHERE stream = a.stream LIMIT 1) AS s ON true
        LEFT JOIN LATERAL (SELECT claimed_until, claim_token FROM mpack_leases
                           WHERE a.claim IS NOT NULL AND mpack_id = substr(a.stream, 7)
                           LIMIT 1) AS l ON true
    ), settled AS (
        SELECT j.*, CASE
            WHEN j.own_verdict = 'ok' AND bool_or(j.own_verdict <> 'ok') OVER (PARTITION BY j.grp)
            THEN 'group' ELSE j.own_verdict END AS final_verdict
        FROM judged AS j
    ), accepted AS (
        SELECT s.*, head.position + row_number() OVER (ORDER BY s.ord) AS position,
               sha256(textsend(s.data)) AS data_sha,
               CASE WHEN s.stream LIKE 'lease/%' THEN substr(s.stream, 7) END AS mpack_id,
               CASE WHEN s.stream LIKE 'lease/%' THEN s.data::jsonb END AS fact
        FROM settled AS s WHERE s.final_verdict = 'ok'
    ), chained AS (
        SELECT c.ord, hash_chain(c.fields) OVER (ORDER BY c.ord) AS hash
        FROM (SELECT 0 AS ord, head.hash AS fields UNION ALL
              SELECT a.ord, int4send(octet_length(t.position)) || textsend(t.position)
                  || int4send(16) || uuid_send(a.event_id)
                  || int4send(octet_length(a.stream)) || textsend(a.stream)
                  || int4send(octet_length(t.version)) || textsend(t.version)
                  || int4send(octet_length(a.type)) || textsend(a.type)
                  || int4send(octet_length(t.schema_version)) || textsend(t.schema_version)
                  || int4send(32) || a.data_sha
                  || int4send(octet_length(a.actor)) || textsend(a.actor)
                  || COALESCE(int4send(octet_length(a.request_id)) || textsend(a.request_id),
                              int4send(-1))
                  || moment_field
              FROM accepted AS a,
                   LATERAL (SELECT a.position::text AS position, a.version::text AS version,
                                   a.schema_version::text AS schema_version) AS t) AS c
    ), inserted AS (
        INSERT INTO events (position, event_id, stream, version, type, schema_version, data,
                            data_sha, actor, request_id, recorded_at, hash)
        SELECT a.position, a.event_id, a.stream, a.version, a.type, a.schema_version, a.data,
               a.data_sha, a.actor, a.request_id, moment, c.hash
        FROM accepted AS a JOIN chained AS c USING (ord) ORDER BY a.ord
    ), streamed AS (
        INSERT INTO event_streams AS s (stream, version, last_position)
        SELECT a.stream, a.version, a.position FROM accepted AS a
        ON CONFLICT (stream) DO UPDATE
        SET version = excluded.version, last_position = excluded.last_position
    ), begun AS (
        INSERT INTO mpack_leases (mpack_id, kind, repo_id, object_id, storage_key, cache_key, state,
                                  granted_at, delete_at, version, last_position)
        SELECT a.mpack_id, a.fact ->> 'kind', a.fact ->> 'repo_id', a.fact ->> 'object_id',
               a.fact ->> 'storage_key', a.fact ->> 'cache_key', 'reserved',
               (a.fact ->> 'granted_at')::timestamptz, (a.fact ->> 'delete_at')::timestamptz,
               a.version, a.position
        FROM accepted AS a WHERE a.type IN ('lease.reserved', 'lease.adopted')
    ), folded AS (
        UPDATE mpack_leases AS l SET
            state = CASE a.type WHEN 'lease.activated' THEN 'active'
                                WHEN 'lease.reclaimed' THEN 'reclaimed' ELSE l.state END,
            sha256 = coalesce(a.fact ->> 'sha256', l.sha256),
            size_bytes = coalesce((a.fact ->> 'size_bytes')::bigint, l.size_bytes),
            activated_at = coalesce((a.fact ->> 'activated_at')::timestamptz, l.activated_at),
            expires_at = coalesce((a.fact ->> 'expires_at')::timestamptz, l.expires_at),
            delete_at = coalesce((a.fact ->> 'delete_at')::timestamptz, l.delete_at),
            revoked_at = coalesce((a.fact ->> 'revoked_at')::timestamptz, l.revoked_at),
            stuck = CASE a.type WHEN 'lease.stuck' THEN true
                                WHEN 'lease.reclaimed' THEN false ELSE l.stuck END,
            reclaimed_at = coalesce((a.fact ->> 'reclaimed_at')::timestamptz, l.reclaimed_at),
            outcome = coalesce(a.fact ->> 'outcome', l.outcome),
            lateness_ms = coalesce((a.fact ->> 'lateness_ms')::bigint, l.lateness_ms),
            version = a.version, last_position = a.position,
            claimed_by = CASE WHEN a.type <> 'lease.reclaimed' THEN l.claimed_by END,
            claimed_until = CASE WHEN a.type <> 'lease.reclaimed' THEN l.claimed_until END,
            claim_token = CASE WHEN a.type <> 'lease.reclaimed' THEN l.claim_token END
        FROM accepted AS a
        WHERE l.mpack_id = a.mpack_id AND a.type NOT IN ('lease.reserved', 'lease.adopted')
    ), moved AS (
        UPDATE event_head AS h
        SET position = t.position, hash = t.hash, recorded_at = moment
        FROM (SELECT a.position, c.hash FROM accepted AS a JOIN chained AS c USING (ord)
              ORDER BY a.ord DESC LIMIT 1) AS t
        WHERE h.id = 1
    )
    SELECT s.final_verdict, a.position, a.version, CASE WHEN a.position IS NOT NULL THEN moment END
    FROM settled AS s LEFT JOIN accepted AS a USING (ord) ORDER BY s.ord;

    SELECT h.position - head.position INTO accepted_count FROM event_head AS h WHERE h.id = 1;
    IF accepted_count > 0 THEN
        PERFORM pg_notify('mpack_events', (head.position + accepted_count)::text);
    END IF;
END $$;

-- What the fold columns must be, from the log alone: for each column the last event that names it.
CREATE VIEW mpack_leases_fold AS
SELECT f.mpack_id, f.kind, f.repo_id, f.object_id, f.storage_key, f.cache_key, f.state, f.sha256,
       f.size_bytes::bigint AS size_bytes, f.granted_at::timestamptz AS granted_at,
       f.activated_at::timestamptz AS activated_at, f.expires_at::timestamptz AS expires_at,
       f.delete_at::timestamptz AS delete_at, f.revoked_at::timestamptz AS revoked_at, f.stuck,
       f.reclaimed_at::timestamptz AS reclaimed_at, f.outcome,
       f.lateness_ms::bigint AS lateness_ms, f.version, f.last_position
FROM (
    SELECT e.mpack_id,
           max(e.fact ->> 'kind') AS kind, max(e.fact ->> 'repo_id') AS repo_id,
           max(e.fact ->> 'object_id') AS object_id, max(e.fact ->> 'storage_key') AS storage_key,
           max(e.fact ->> 'cache_key') AS cache_key,
           CASE WHEN bool_or(e.type = 'lease.reclaimed') THEN 'reclaimed'
                WHEN bool_or(e.type = 'lease.activated') THEN 'active' ELSE 'reserved' END AS state,
           max(e.fact ->> 'sha256') AS sha256, max(e.fact ->> 'size_bytes') AS size_bytes,
           max(e.fact ->> 'granted_at') AS granted_at,
           max(e.fact ->> 'activated_at') AS activated_at,
           (array_agg(e.fact ->> 'expires_at' ORDER BY e.version DESC)
                FILTER (WHERE e.fact ->> 'expires_at' IS NOT NULL))[1] AS expires_at,
           (array_agg(e.fact ->> 'delete_at' ORDER BY e.version DESC)
                FILTER (WHERE e.fact ->> 'delete_at' IS NOT NULL))[1] AS delete_at,
           (array_agg(e.fact ->> 'revoked_at' ORDER BY e.version DESC)
                FILTER (WHERE e.fact ->> 'revoked_at' IS NOT NULL))[1] AS revoked_at,
           bool_or(e.type = 'lease.stuck') AND NOT bool_or(e.type = 'lease.reclaimed') AS stuck,
           max(e.fact ->> 'reclaimed_at') AS reclaimed_at, max(e.fact ->> 'outcome') AS outcome,
           max(e.fact ->> 'lateness_ms') AS lateness_ms,
           max(e.version) AS version, max(e.position) AS last_position
    FROM (SELECT substr(stream, 7) AS mpack_id, position, version, type, data::jsonb AS fact
          FROM events WHERE stream LIKE 'lease/%') AS e
    GROUP BY e.mpack_id
) AS f;
