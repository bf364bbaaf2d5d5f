"""What stays small however much there is: the most that Python held at once, not the process."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from leases.database import Database
from leases.ids import new_mpack_id
from leases.model import PREFIX, LeaseKind, Trigger, storage_key
from leases.ports import BlobInfo, DeleteOutcome
from leases.reconcile import Finding
from tests.factories import make_history
from tests.fakes import ListingStore
from tests.integration.gateways import serving, settings_for
from tests.leasing import CALLER, QUICK, engine_on

MIB = 1 << 20
DAY = timedelta(days=1)


@contextmanager
def traced() -> Iterator[list[int]]:
    """At its end the list holds the most bytes that the block held at once."""
    told: list[int] = []
    gc.collect()
    tracemalloc.start()
    try:
        yield told
        told.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()


async def test_releases_are_listed_without_holding_them_as_objects(
    database_url: str, tmp_path: Path
) -> None:
    """Sixty-four mebibytes of them are gigabytes of small maps."""
    async with serving(settings_for(database_url, tmp_path / "data")) as gateway:
        token = await gateway.token("push")
        await gateway.push("o/r", make_history(9, commits=1), token=token)
        repo = await gateway.service.repos.find(owner="o", slug="r")
        assert repo is not None
        limits = gateway.service.settings.wire
        # As JSON four bytes each, as objects seventy-two.
        maps: list[object] = [{}] * 260_000
        for number in range(3):
            record = {"tag": f"v{number}", "maps": maps}
            await gateway.service.names.put_release(repo.repo_id, record, CALLER, limits=limits)
        with traced() as most:
            answer = await gateway.http.get(f"{gateway.url}/o/r/releases")
            size_bytes = len(answer.content)
        assert (answer.status_code, size_bytes > 3 * len(maps)) == (200, True)
        assert most[0] < 40 * MIB


_OPEN = """
INSERT INTO mpack_leases (mpack_id, kind, repo_id, storage_key, state, sha256, size_bytes,
                          granted_at, activated_at, expires_at, delete_at, version, last_position)
SELECT made.id, 'pack', 'r', 'transient/' || log_id || '/' || made.id, 'active', repeat('0', 64), 1,
       now(), now(), now() + $2::interval, now() + $2, 2, 1
FROM (SELECT '0190' || lpad(to_hex(n), 8, '0') || '70008' || lpad(n::text, 15, '0') AS id
      FROM generate_series(0, $1 - 1) AS n) AS made, event_head
"""
_STREAMS = """
INSERT INTO event_streams (stream, version, last_position)
SELECT 'lease/' || mpack_id, 2, 1 FROM mpack_leases
"""


class ManyBlobs(ListingStore):
    """So many blobs, of leases made by `_OPEN`, of which it keeps nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.log_id = ""
        self.count = 0
        self.missing = -1

    async def list(self, prefix: str) -> AsyncIterator[BlobInfo]:
        assert prefix == PREFIX
        for number in range(self.count):
            if number != self.missing:
                yield self._info(number)

    async def head(self, key: str) -> BlobInfo | None:
        number = int(key[-15:])
        return None if number == self.missing else self._info(number)

    async def delete_many(self, keys: Sequence[str]) -> Mapping[str, DeleteOutcome | Exception]:
        return dict.fromkeys(keys, DeleteOutcome.DELETED)

    def _info(self, number: int) -> BlobInfo:
        key = storage_key(self.log_id, f"0190{number:08x}70008{number:015}")
        return BlobInfo(key=key, size_bytes=1, modified_at=datetime(2026, 1, 1, tzinfo=UTC))


async def test_a_comparison_holds_a_page_of_blobs_at_a_time(database: Database) -> None:
    """Both ways: a page of the listing and of the leases; of the keys that were seen some bits."""
    store = ManyBlobs()
    async with engine_on(database, store) as engine:
        store.log_id, store.count, store.missing = engine.log_id, 10_000, 6_234
        await database.execute(_OPEN, store.count, DAY)
        with traced() as most:
            result = await engine.reconciler.run_once()
    gone = storage_key(store.log_id, f"0190{store.missing:08x}70008{store.missing:015}")
    assert (result.listed, result.findings) == (9_999, [(Finding.BLOB_MISSING, gone)])
    assert most[0] < 3 * MIB


async def test_a_sweep_holds_a_batch_for_each_worker_at_a_time(database: Database) -> None:
    store = ManyBlobs()
    async with engine_on(database, store, replace(QUICK, reap_batch=100)) as engine:
        await database.execute(_OPEN, 3_000, -DAY)
        await database.execute(_STREAMS)
        with traced() as most:
            result = await engine.reaper.sweep(Trigger.COMMAND)
    assert (result.reclaimed, len(result.mpack_ids)) == (3_000, 1_000)
    assert most[0] < 4 * MIB


async def test_uploads_are_reserved_a_thousand_at_a_time(database: Database) -> None:
    """A caller may ask for a hundred thousand URLs."""
    async with engine_on(database, ManyBlobs()) as engine:
        ids = {new_mpack_id(): "0" * 64 for _ in range(4_000)}
        count = 0
        with traced() as most:
            async for lease in engine.lessor.reserve_uploads(ids, repo_id="r", caller=CALLER):
                count += lease.kind is LeaseKind.UPLOAD
    assert count == len(ids)
    assert most[0] < 6 * MIB


async def test_a_look_at_what_is_due_names_a_thousand(database: Database) -> None:
    async with engine_on(database, ManyBlobs()) as engine:
        await database.execute(_OPEN, 20_000, -DAY)
        with traced() as most:
            found = await engine.reaper.look()
    assert (found.claimed, len(found.mpack_ids)) == (20_000, 1_000)
    assert found.lateness_ms_max >= DAY // timedelta(milliseconds=1)
    assert most[0] < MIB
