"""Facts of made-up leases, ready to be appended without asking the lessor."""

from __future__ import annotations

from datetime import datetime, timedelta

from benchmarks.place import CALLER
from leases.lessor import new_lease_event
from leases.log import NewEvent
from leases.model import LeaseActivated, LeaseKind, LeaseReserved, storage_key

_REPLICA = "benchmark"
_SHA256 = "0" * 64


def reserved(mpack_id: str, *, log_id: str, now: datetime) -> NewEvent:
    """The first fact of a lease."""
    event = LeaseReserved(
        kind=LeaseKind.PACK,
        repo_id="benchmark",
        storage_key=storage_key(log_id, mpack_id),
        granted_at=now,
        delete_at=now + timedelta(minutes=10),
    )
    return new_lease_event(mpack_id, event, caller=CALLER, replica=_REPLICA, expected_version=0)


def activated(mpack_id: str, *, now: datetime, delete_at: datetime) -> NewEvent:
    """The second; with the guards that go with it."""
    event = LeaseActivated(
        sha256=_SHA256,
        size_bytes=1,
        activated_at=now,
        expires_at=delete_at,
        delete_at=delete_at,
        ttl_seconds=(delete_at - now).total_seconds(),
    )
    return new_lease_event(
        mpack_id,
        event,
        caller=CALLER,
        replica=_REPLICA,
        expected_version=1,
        not_after=now + timedelta(minutes=10),
        no_claim=True,
    )
