DROP VIEW mpack_leases_fold;
DROP FUNCTION append_events;
DROP FUNCTION make_event_partition;
DROP TABLE events;
DROP FUNCTION refuse_change;
DROP FUNCTION event_partition_size;
