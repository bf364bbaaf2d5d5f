DROP VIEW mpack_leases_fold;
DROP FUNCTION append_events;
DROP AGGREGATE hash_chain (bytea);
DROP FUNCTION hash_chain_next;
DROP FUNCTION make_event_partition;
DROP TABLE events;
DROP FUNCTION refuse_change;
DROP FUNCTION event_partition_size;
