-- The rights of the service's role, and no more: run as the owner of the tables, once after the
-- first `mpack-gateway db upgrade` and again after every later one (a release may add tables).
--
--     psql "$OWNER_URL" -v ON_ERROR_STOP=1 -f deploy/grants.sql
--     CREATE ROLE gateway LOGIN PASSWORD '…' IN ROLE mpack_gateway;
--
-- Migrations, `audit rebuild` and these grants stay with the owner, whose password the service
-- does not know. So a gateway that was broken into can neither edit nor cut the log, nor say of a
-- lease what the log does not say.

DO $$ BEGIN
    CREATE ROLE mpack_gateway NOLOGIN;
EXCEPTION WHEN duplicate_object THEN NULL;
END $$;

-- What stood here before ends first, so that this file is the whole truth.
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM mpack_gateway;
REVOKE ALL ON FUNCTION append_events, make_event_partition FROM mpack_gateway, PUBLIC;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO mpack_gateway;

-- The log: it is read, and appended to by the one function that checks and chains.
GRANT SELECT ON alembic_version, event_head, event_streams, events, mpack_leases_fold
    TO mpack_gateway;
GRANT EXECUTE ON FUNCTION append_events TO mpack_gateway;

-- Leases: the function writes what they are; the service itself only its reaper's notes.
GRANT SELECT ON mpack_leases TO mpack_gateway;
GRANT UPDATE (attempts, next_attempt_at, last_error, claimed_by, claimed_until, claim_token)
    ON mpack_leases TO mpack_gateway;

-- Content, membership, slots. DELETE is for `gc`, `repo delete` and for slots that are done with.
GRANT SELECT, INSERT, UPDATE, DELETE ON
    repos, branches, tags, releases,
    objects, segments, mpack_index, snapshots, commits, commit_graph, introductions,
    object_refs, snapshot_refs, commit_refs, pack_slots
    TO mpack_gateway;

-- Tokens are made, noted as used, and revoked; none is ever removed.
GRANT SELECT, INSERT, UPDATE ON api_tokens TO mpack_gateway;
