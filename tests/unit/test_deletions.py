"""The delete path can name nothing outside of the transient prefix."""

from __future__ import annotations

from dataclasses import replace

import pytest

from leases.clock import SystemClock
from leases.deletions import Deletions
from leases.model import Lease, LeaseKind, LeaseState
from tests.fakes import ListingStore


async def test_a_key_outside_of_the_prefix_is_a_bug_and_deletes_nothing() -> None:
    store = ListingStore()
    store.blobs = {"transient/log/one": b"1", "segments/two": b"2"}
    deletions = Deletions(store, batch_max=10, timeout_seconds=1, monotonic=SystemClock().monotonic)
    now = SystemClock().now()
    lease = Lease(
        mpack_id="one",
        kind=LeaseKind.PACK,
        repo_id="repo-1",
        storage_key="transient/log/one",
        state=LeaseState.RESERVED,
        granted_at=now,
        delete_at=now,
        version=1,
    )
    with pytest.raises(AssertionError):
        await deletions.delete([lease, replace(lease, storage_key="segments/two")])
    assert len(store.blobs) == 2
