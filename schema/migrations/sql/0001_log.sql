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

-- The one way into the log. The answer is one row; its arrays hold one entry per event asked for, in
-- order. Positions and versions are those of the appended events, verdicts are:
--   ok        appended
--   repeat    this very event stands at its place already (an earlier answer was lost)
--   version   the stream is not at the expected version
--   deadline  not_after has passed, by this database's clock, read while the head is locked
--   claim     'none': a claim is live; a token: the lease is not claimed with it
--   group     another event of the same group was refused
-- Events with one group number are all appended or none; at most one event per stream in a call.
-- Call it as the last statement before COMMIT. Lock order: domain rows, head, lease rows.
--
-- A statement costs its start (tens of microseconds) once and each row little, so there are a few
-- statements for all events, none that has nothing to do, and plain arithmetic between them.
CREATE FUNCTION append_events(
    groups int[], streams text[], expected int[], event_ids uuid[], types text[],
    schema_versions smallint[], datas text[], actors text[], request_ids text[],
    not_afters timestamptz[], claims text[],
    OUT verdicts text[], OUT positions bigint[], OUT versions int[], OUT appended_at timestamptz)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = :schema, pg_temp
-- Planning costs more than running, and every row is found by its key.
SET plan_cache_mode = force_generic_plan SET jit = off SET enable_seqscan = off
SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    asked_count int := cardinality(streams);
    head event_head%ROWTYPE;
    size bigint := event_partition_size();
    highest bigint;
    found record;
    verdict text;
    refused int[];          -- The groups of which an event was refused.
    accepted int[];         -- Places, in the arrays asked for, of what is appended.
    accepted_count int := 0;
    facts jsonb[];          -- Of accepted lease events; null for others.
    data_shas bytea[];
    hashes bytea[];
    moment_field bytea;
    position_text text;
    version_text text;
    schema_text text;
    begins boolean := false;
    moves boolean := false;
BEGIN
    SELECT * INTO STRICT head FROM event_head WHERE id = 1 FOR UPDATE;
    -- A claim takes no head lock. Locking the lease row first means that either the claim is
    -- visible below, or it skips the row: an activation can never commit under a claim.
    IF 'none' = ANY (claims) THEN
        PERFORM FROM mpack_leases AS l
        WHERE l.mpack_id IN (SELECT substr(streams[i], 7) FROM generate_series(1, asked_count) AS i
                             WHERE claims[i] = 'none')
        ORDER BY l.mpack_id FOR UPDATE;
    END IF;
    appended_at := greatest(clock_timestamp(), head.recorded_at);
    -- Half a partition ahead, so that no append ever waits for one.
    highest := head.position + asked_count + size / 2;
    IF highest / size > (head.position + size / 2) / size THEN
        PERFORM make_event_partition(highest / size);
    END IF;

    FOR found IN
        SELECT i, s.version, l.claimed_until, l.claim_token
        FROM generate_series(1, asked_count) AS i
        LEFT JOIN event_streams AS s ON s.stream = streams[i]
        LEFT JOIN mpack_leases AS l ON claims[i] IS NOT NULL AND l.mpack_id = substr(streams[i], 7)
    LOOP
        verdict := 'ok';
        versions[found.i] := coalesce(found.version, 0) + 1;
        IF expected[found.i] IS NULL THEN
            IF EXISTS (SELECT FROM events AS e WHERE e.event_id = event_ids[found.i]) THEN
                verdict := 'repeat';
            END IF;
        ELSIF expected[found.i] + 1 <> versions[found.i] THEN
            verdict := 'version';
            IF EXISTS (SELECT FROM events AS e
                       WHERE e.stream = streams[found.i] AND e.version = expected[found.i] + 1
                             AND e.event_id = event_ids[found.i]) THEN
                verdict := 'repeat';
            END IF;
        END IF;
        IF verdict <> 'ok' THEN
            NULL;
        ELSIF not_afters[found.i] < appended_at THEN
            verdict := 'deadline';
        ELSIF claims[found.i] = 'none' THEN
            IF found.claimed_until > appended_at THEN
                verdict := 'claim';
            END IF;
        ELSIF found.claim_token IS DISTINCT FROM claims[found.i]::uuid THEN
            verdict := 'claim';
        END IF;
        verdicts[found.i] := verdict;
        IF verdict <> 'ok' THEN
            refused := refused || groups[found.i];
        END IF;
    END LOOP;

    -- The chain: what is hashed of an event is each field's length as four bytes and then its bytes
    -- (NULL is the length -1), after the hash before it.
    moment_field := textsend(((extract(epoch FROM appended_at) * 1000000)::bigint)::text);
    moment_field := int4send(octet_length(moment_field)) || moment_field;
    positions := array_fill(NULL::bigint, ARRAY[asked_count]);
    FOR i IN 1 .. asked_count LOOP
        IF verdicts[i] <> 'ok' THEN
            versions[i] := NULL;
        ELSIF groups[i] = ANY (refused) THEN
            verdicts[i] := 'group';
            versions[i] := NULL;
        ELSE
            accepted_count := accepted_count + 1;
            accepted[accepted_count] := i;
            positions[i] := head.position + accepted_count;
            position_text := positions[i];
            version_text := versions[i];
            schema_text := schema_versions[i];
            data_shas[accepted_count] := sha256(textsend(datas[i]));
            head.hash := sha256(
                head.hash
                || int4send(octet_length(position_text)) || textsend(position_text)
                || int4send(16) || uuid_send(event_ids[i])
                || int4send(octet_length(streams[i])) || textsend(streams[i])
                || int4send(octet_length(version_text)) || textsend(version_text)
                || int4send(octet_length(types[i])) || textsend(types[i])
                || int4send(octet_length(schema_text)) || textsend(schema_text)
                || int4send(32) || data_shas[accepted_count]
                || int4send(octet_length(actors[i])) || textsend(actors[i])
                || coalesce(int4send(octet_length(request_ids[i])) || textsend(request_ids[i]),
                            int4send(-1))
                || moment_field);
            hashes[accepted_count] := head.hash;
            IF streams[i] LIKE 'lease/%' THEN
                facts[accepted_count] := datas[i]::jsonb;
                IF types[i] IN ('lease.reserved', 'lease.adopted') THEN
                    begins := true;
                ELSE
                    moves := true;
                END IF;
            END IF;
        END IF;
    END LOOP;
    IF accepted_count = 0 THEN
        appended_at := NULL;
        RETURN;
    END IF;

    INSERT INTO events (position, event_id, stream, version, type, schema_version, data,
                        data_sha, actor, request_id, recorded_at, hash)
    SELECT positions[i], event_ids[i], streams[i], versions[i], types[i], schema_versions[i],
           datas[i], data_shas[n], actors[i], request_ids[i], appended_at, hashes[n]
    FROM (SELECT n, accepted[n] AS i FROM generate_series(1, accepted_count) AS n) AS a;

    INSERT INTO event_streams AS s (stream, version, last_position)
    SELECT streams[i], versions[i], positions[i]
    FROM (SELECT accepted[n] AS i FROM generate_series(1, accepted_count) AS n) AS a
    ON CONFLICT (stream) DO UPDATE
    SET version = excluded.version, last_position = excluded.last_position;

    IF begins THEN
        INSERT INTO mpack_leases (mpack_id, kind, repo_id, object_id, storage_key, cache_key, state,
                                  size_bytes, granted_at, delete_at, version, last_position)
        SELECT substr(streams[i], 7), fact ->> 'kind', fact ->> 'repo_id', fact ->> 'object_id',
               fact ->> 'storage_key', fact ->> 'cache_key', 'reserved',
               (fact ->> 'size_bytes')::bigint, (fact ->> 'granted_at')::timestamptz,
               (fact ->> 'delete_at')::timestamptz, versions[i], positions[i]
        FROM (SELECT accepted[n] AS i, facts[n] AS fact
              FROM generate_series(1, accepted_count) AS n) AS a
        WHERE types[i] IN ('lease.reserved', 'lease.adopted');
    END IF;
    IF moves THEN
        UPDATE mpack_leases AS l SET
            state = CASE a.type WHEN 'lease.activated' THEN 'active'
                                WHEN 'lease.reclaimed' THEN 'reclaimed' ELSE l.state END,
            sha256 = coalesce(fact ->> 'sha256', l.sha256),
            size_bytes = coalesce((fact ->> 'size_bytes')::bigint, l.size_bytes),
            activated_at = coalesce((fact ->> 'activated_at')::timestamptz, l.activated_at),
            expires_at = coalesce((fact ->> 'expires_at')::timestamptz, l.expires_at),
            delete_at = coalesce((fact ->> 'delete_at')::timestamptz, l.delete_at),
            revoked_at = coalesce((fact ->> 'revoked_at')::timestamptz, l.revoked_at),
            stuck = CASE a.type WHEN 'lease.stuck' THEN true
                                WHEN 'lease.reclaimed' THEN false ELSE l.stuck END,
            reclaimed_at = coalesce((fact ->> 'reclaimed_at')::timestamptz, l.reclaimed_at),
            outcome = coalesce(fact ->> 'outcome', l.outcome),
            lateness_ms = coalesce((fact ->> 'lateness_ms')::bigint, l.lateness_ms),
            version = versions[a.i], last_position = positions[a.i],
            claimed_by = CASE WHEN a.type <> 'lease.reclaimed' THEN l.claimed_by END,
            claimed_until = CASE WHEN a.type <> 'lease.reclaimed' THEN l.claimed_until END,
            claim_token = CASE WHEN a.type <> 'lease.reclaimed' THEN l.claim_token END
        FROM (SELECT accepted[n] AS i, facts[n] AS fact, types[accepted[n]] AS type
              FROM generate_series(1, accepted_count) AS n) AS a
        WHERE a.fact IS NOT NULL AND a.type NOT IN ('lease.reserved', 'lease.adopted')
              AND l.mpack_id = substr(streams[a.i], 7);
    END IF;

    UPDATE event_head SET position = head.position + accepted_count, hash = head.hash,
                          recorded_at = appended_at
    WHERE id = 1;
    PERFORM pg_notify('mpack_events', (head.position + accepted_count)::text);
END $$;

-- What the fold columns must be, from the log alone: for each column the last event that names it.
-- A lease whose beginning is archived has ended, and its row went with it. Ask for few leases by
-- `stream`, which reaches the index. Each fact is parsed once, for all of its columns: `->>` for each
-- of them parses it each time, which took four times as long.
CREATE VIEW mpack_leases_fold AS
SELECT f.mpack_id, f.kind, f.repo_id, f.object_id, f.storage_key, f.cache_key, f.state, f.sha256,
       f.size_bytes::bigint AS size_bytes, f.granted_at::timestamptz AS granted_at,
       f.activated_at::timestamptz AS activated_at, f.expires_at::timestamptz AS expires_at,
       f.delete_at::timestamptz AS delete_at, f.revoked_at::timestamptz AS revoked_at, f.stuck,
       f.reclaimed_at::timestamptz AS reclaimed_at, f.outcome,
       f.lateness_ms::bigint AS lateness_ms, f.version, f.last_position, f.stream
FROM (
    SELECT e.stream, substr(e.stream, 7) AS mpack_id,
           max(fact.kind) AS kind, max(fact.repo_id) AS repo_id,
           max(fact.object_id) AS object_id, max(fact.storage_key) AS storage_key,
           max(fact.cache_key) AS cache_key,
           CASE WHEN bool_or(e.type = 'lease.reclaimed') THEN 'reclaimed'
                WHEN bool_or(e.type = 'lease.activated') THEN 'active' ELSE 'reserved' END AS state,
           max(fact.sha256) AS sha256,
           coalesce(max(fact.size_bytes) FILTER (WHERE e.type = 'lease.activated'),
                    max(fact.size_bytes)) AS size_bytes,
           max(fact.granted_at) AS granted_at,
           max(fact.activated_at) AS activated_at,
           (array_agg(fact.expires_at ORDER BY e.version DESC)
                FILTER (WHERE fact.expires_at IS NOT NULL))[1] AS expires_at,
           (array_agg(fact.delete_at ORDER BY e.version DESC)
                FILTER (WHERE fact.delete_at IS NOT NULL))[1] AS delete_at,
           (array_agg(fact.revoked_at ORDER BY e.version DESC)
                FILTER (WHERE fact.revoked_at IS NOT NULL))[1] AS revoked_at,
           bool_or(e.type = 'lease.stuck') AND NOT bool_or(e.type = 'lease.reclaimed') AS stuck,
           max(fact.reclaimed_at) AS reclaimed_at, max(fact.outcome) AS outcome,
           max(fact.lateness_ms) AS lateness_ms,
           max(e.version) AS version, max(e.position) AS last_position
    FROM events AS e CROSS JOIN LATERAL jsonb_to_record(e.data::jsonb) AS fact (
        kind text, repo_id text, object_id text, storage_key text, cache_key text, sha256 text,
        size_bytes text, granted_at text, activated_at text, expires_at text, delete_at text,
        revoked_at text, reclaimed_at text, outcome text, lateness_ms text)
    WHERE e.stream LIKE 'lease/%'
    GROUP BY e.stream
    HAVING min(e.version) = 1
) AS f;
