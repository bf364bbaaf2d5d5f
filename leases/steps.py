"""The named steps of a fetch, a push, a reap, a `gc` and an archive: where a crash could fall.

Code that crosses one says so by calling the `Steps` it was given. In production that does
nothing; a crash test passes a function that kills the process at one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum


class Step(StrEnum):
    """A boundary between two effects; the name tells which effect has just been made."""

    SLOT_TAKEN = "fetch.slot_taken"
    LEASE_RESERVED = "fetch.lease_reserved"
    PACK_BUILT = "fetch.pack_built"
    PACK_PUT = "fetch.pack_put"
    LEASE_ACTIVATED = "fetch.lease_activated"
    SLOT_PUBLISHED = "fetch.slot_published"
    URL_SIGNED = "fetch.url_signed"
    LEASE_RENEWED = "fetch.lease_renewed"
    SEGMENT_PENDING = "push.segment_pending"
    SEGMENT_PUT = "push.segment_put"
    SEGMENT_LIVE = "push.segment_live"
    PUSH_WRITTEN = "push.written"
    PUSH_COMMITTED = "push.committed"
    LEASES_CLAIMED = "reap.claimed"
    BLOBS_DELETED = "reap.deleted"
    RECLAIMS_RECORDED = "reap.recorded"
    FAILURES_RECORDED = "reap.failures_recorded"
    CONTENT_REMOVED = "gc.content_removed"
    JOIN_PENDING = "gc.join_pending"
    JOIN_PUT = "gc.join_put"
    SEGMENTS_JOINED = "gc.segments_joined"
    SEGMENTS_CONDEMNED = "gc.segments_condemned"
    SEGMENTS_DELETED = "gc.segments_deleted"
    ARCHIVE_BEGUN = "archive.begun"
    ARCHIVE_EVENTS_WRITTEN = "archive.events_written"
    ARCHIVE_LEASES_WRITTEN = "archive.leases_written"
    ARCHIVE_MANIFEST_WRITTEN = "archive.manifest_written"
    ARCHIVE_LEASES_REMOVED = "archive.leases_removed"
    ARCHIVE_PART_DETACHED = "archive.part_detached"
    ARCHIVE_APPENDED = "archive.appended"
    ARCHIVE_COMMITTED = "archive.committed"


Steps = Callable[[Step], None]


def no_steps(_step: Step) -> None:
    """What production passes: nothing happens at a step."""
