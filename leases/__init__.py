"""Leases on blobs that must go in time: gone within a second of the deadline, never before it.

A service that hands out presigned URLs stores a blob, and a row says when it must go. This package
keeps that promise, and proves it; it knows nothing of HTTP or of what the blobs are. It needs a
PostgreSQL database (the tables of `schema`) and a blob store (`leases.ports.BlobStore`).

The life of a lease
-------------------

    reserve          activate              renew
       │                │              ┌─────────┐
       ▼                ▼              │         ▼
    RESERVED ───────▶ ACTIVE ──────────┴───── (ACTIVE)
       │                │                        │
       │ delete_at      │ revoke, or delete_at   │
       ▼                ▼                        ▼
       └────────▶ due: claimed, deleted ◀────────┘
                        │
                        ▼
                    RECLAIMED            exactly one `lease.reclaimed`

Every arrow is an event in an append-only, hash-chained log; a lease's state is the fold of its
events, and the table `mpack_leases` is that fold, written in the same statement. What may follow
what is decided in `decide`, without I/O; the rest of the package loads, decides, appends, and acts
only after the commit.

Row before blob. A reservation is committed before the first byte is stored, and is itself due
when its upload limit passes. So a crash anywhere leaves a row without a blob, which is harmless,
and never a blob without a row.

An ended lease stays ended. A lease is not renewed once its deadline is near, and never lives past
its longest life; then a new id is made. Ids are never reused. So a late or doubled deletion cannot
hit a blob that somebody was promised.

Whose clock counts
------------------

The database's. What is due is decided by `statement_timestamp()` in the claim; what may still be
activated or renewed is checked with `clock_timestamp()` under the lock on the log's head, because
a decision made before a deadline may reach the log after it. A process's clock decides only when
to look again: an hour's jump costs at most one look-ahead (half a second). The time that a record
tells is this process's best estimate of the database's, and never ahead of it.

The table is the queue
----------------------

A reap claims due rows, oldest first (`FOR UPDATE SKIP LOCKED`, one autocommit statement), deletes
their blobs outside any transaction, and records what is gone in one append guarded by the claim.
Alarm, start-up sweep, periodic sweep and command are four callers of that one function. The alarm
is a single APScheduler job set to the earliest due time: losing it delays a cleanup to the next
look-ahead and loses nothing.

What each failure does
----------------------

    we die holding a claim          the claim ends with our database session, within about a
                                    second; behind a pooler, at the claim limit
    the deletion's answer is lost   the row is due again; deleting again finds nothing
    the record's answer is lost     the append is sent again; its event id makes it the same event
    two replicas claim              locked rows are skipped; a claim that was taken over cannot
                                    record
    the store is out                the circuit opens; no attempt is counted; one probe at a time
                                    until it is back, then a little and soon everything
    one blob cannot be deleted      retried for ever, ever more slowly; after eight times it is
                                    stuck, which is persisted and alerted on
    one blob fails as if the        a probe shows that it is not; that blob is tried by itself, and
    store were out                  its failures then count as its own
    one lease's end is not taken    as by a stream that contradicts itself: that costs this lease an
                                    attempt, and keeps nobody else waiting
    a timed-out PUT lands late      reconcile finds a blob of a closed lease and deletes it
    the database lost its tail      the store's mark shows it, or an event that this process has
                                    appended is gone: compared whenever the session of its lock was
                                    lost, and nothing is deleted before; reaping pauses until a
                                    human looked. A host that dies in silence is noticed by a ping
                                    (leases/instance.py), within some ten seconds
    the wrong database              the mark belongs to another log; reaping pauses

The deletion request is sent at least once and is idempotent; the recorded cleanup is exactly one.

Where to look
-------------

    model, decide, codec, chain, policy, circuit    pure: what there is and what may happen
    log, lookups, lessor                            append and read; grant, move and end leases
    reaper, settlement                              delete what is due; record what became of it
    alarm, instance                                 when to look; who is alive
    probe, suspects                                 is the store out, or is it one blob
    owner, reconcile, audit                         whose store this is; both ways; the proof
    engine                                          all of it, to switch on
"""
