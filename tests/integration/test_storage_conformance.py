"""What every storage adapter must do, whatever lies behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from leases.clock import SystemClock
from leases.errors import BlobMissing, InvalidRequest
from leases.ids import new_mpack_id
from leases.ports import (
    AbortsUploads,
    BlobStore,
    DeleteOutcome,
    DeletesMany,
    HeadsBlobs,
    ListsBlobs,
)
from tests.integration.storage_adapters import ADAPTERS, Ability, Adapter

EXPIRY_CHECK_SECONDS_MAX = 5


def those_that(*abilities: Ability) -> pytest.MarkDecorator:
    """Run the test for every adapter with these abilities."""
    able = [adapter for adapter in ADAPTERS if adapter.abilities.issuperset(abilities)]
    return pytest.mark.parametrize("adapter", able, ids=lambda adapter: adapter.name)


every_adapter = those_that()


@pytest.fixture
async def store(adapter: Adapter, tmp_path: Path) -> AsyncIterator[Any]:
    async with adapter.open(tmp_path) as opened:
        yield opened


@pytest.fixture
def key() -> str:
    return f"transient/{new_mpack_id()}/{new_mpack_id()}"


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


@every_adapter
def test_has_the_abilities_it_declares(adapter: Adapter, store: Any) -> None:
    required: BlobStore = store
    assert required.supports_presign in (True, False)
    assert isinstance(store, DeletesMany) == (Ability.DELETES_MANY in adapter.abilities)
    assert isinstance(store, ListsBlobs) == (Ability.LISTS in adapter.abilities)
    assert isinstance(store, HeadsBlobs) == (Ability.HEADS in adapter.abilities)
    assert isinstance(store, AbortsUploads) == (Ability.ABORTS in adapter.abilities)


@every_adapter
@pytest.mark.parametrize("content", [b"", b"x", bytes(range(256)) * 5000], ids=len)
async def test_gives_back_what_was_put(store: Any, key: str, content: bytes) -> None:
    await store.put(key, content)
    assert await store.get(key) == content


@every_adapter
@pytest.mark.parametrize(
    "parts",
    [[], [b""], [b"a", b"", b"bc"], [b"x" * 700_000] * 10],
    ids=["none", "empty", "3", "7M"],
)
async def test_takes_a_stream(store: Any, key: str, parts: list[bytes]) -> None:
    await store.put(key, chunks(*parts))
    assert await store.get(key) == b"".join(parts)


@every_adapter
@pytest.mark.parametrize(
    "start, stop",
    [(0, 4), (3, 7), (3, None), (None, 4), (9, 100), (10, 20), (50, 60), (4, 4), (None, None)],
)
async def test_reads_ranges_as_python_slices(
    store: Any, key: str, start: int | None, stop: int | None
) -> None:
    await store.put(key, b"0123456789")
    assert await store.get(key, start, stop) == b"0123456789"[start:stop]


@every_adapter
async def test_an_absent_blob_is_missing(store: Any, key: str) -> None:
    with pytest.raises(BlobMissing):
        await store.get(key)
    with pytest.raises(BlobMissing):
        await store.get(key, 0, 10)


@every_adapter
async def test_a_second_put_replaces_the_blob(store: Any, key: str) -> None:
    """A put whose answer was lost is sent again."""
    await store.put(key, b"a longer first one")
    await store.put(key, b"second")
    assert await store.get(key) == b"second"


@every_adapter
async def test_deletes_for_good_and_as_often_as_asked(store: Any, key: str) -> None:
    await store.put(key, b"x")
    assert await store.delete(key) in (None, DeleteOutcome.DELETED)
    assert await store.delete(key) in (None, DeleteOutcome.DELETED, DeleteOutcome.ALREADY_GONE)
    with pytest.raises(BlobMissing):
        await store.get(key)


@every_adapter
async def test_a_failing_source_stores_nothing(store: Any, key: str) -> None:
    async def source() -> AsyncIterator[bytes]:
        yield b"x" * 2_000_000
        raise LookupError("the segment is gone")

    with pytest.raises(LookupError):
        await store.put(key, source())
    with pytest.raises(BlobMissing):
        await store.get(key)


@every_adapter
async def test_a_signed_url_names_the_key(store: Any, key: str) -> None:
    url = await store.presign_get(key, expires_in=60)
    assert urlsplit(url).path.endswith(key)


@those_that(Ability.TELLS_ALREADY_GONE)
async def test_tells_a_deletion_from_an_absent_blob(store: Any, key: str) -> None:
    await store.put(key, b"x")
    assert await store.delete(key) is DeleteOutcome.DELETED
    assert await store.delete(key) is DeleteOutcome.ALREADY_GONE


@those_that(Ability.DELETES_MANY)
async def test_deletes_more_than_a_thousand_at_once(store: Any) -> None:
    """A thousand is the limit of one S3 request: going beyond it is the adapter's business."""
    keys = [f"transient/many/{number:05}" for number in range(1002)]
    for stored in keys[::100]:
        await store.put(stored, b"x")
    outcomes = await store.delete_many(keys)
    assert set(outcomes) == set(keys)
    assert not [outcome for outcome in outcomes.values() if isinstance(outcome, Exception)]
    with pytest.raises(BlobMissing):
        await store.get(keys[0])


@those_that(Ability.DELETES_MANY)
async def test_deleting_nothing_is_no_error(store: Any) -> None:
    assert await store.delete_many([]) == {}


@those_that(Ability.DELETES_MANY)
async def test_one_key_named_twice_has_one_outcome(store: Any, key: str) -> None:
    await store.put(key, b"x")
    assert list(await store.delete_many([key, key])) == [key]


@those_that(Ability.LISTS)
async def test_lists_what_begins_with_the_prefix(store: Any) -> None:
    stored = {
        "transient/.owner": b"o",
        "transient/log/a1": b"1",
        "transient/log/a2": b"22",
        "transient/log/b1": b"333",
        "transientish": b"4",
        "segments/s1": b"5",
    }
    for key, content in stored.items():
        await store.put(key, content)
    for prefix in ("", "transient/", "transient", "transient/log/a", "segments/", "no/such/"):
        listed = {info.key: info.size_bytes async for info in store.list(prefix)}
        expected = {key: len(content) for key, content in stored.items() if key.startswith(prefix)}
        assert listed == expected, prefix


@those_that(Ability.LISTS)
async def test_lists_more_than_one_page(store: Any) -> None:
    for number in range(1003):
        await store.put(f"transient/pages/{number}", b"")
    listed = [info.key async for info in store.list("transient/pages/")]
    assert len(listed) == len(set(listed)) == 1003


@those_that(Ability.LISTS, Ability.HEADS)
async def test_head_and_list_agree(store: Any, key: str) -> None:
    assert await store.head(key) is None
    await store.put(key, b"12345")
    info = await store.head(key)
    assert info is not None
    assert (info.key, info.size_bytes) == (key, 5)
    assert abs(info.modified_at - SystemClock().now()) < timedelta(minutes=1)
    assert [listed.size_bytes async for listed in store.list(key)] == [5]


@those_that(Ability.ABORTS)
async def test_there_is_nothing_to_abort_after_a_put(store: Any, key: str) -> None:
    await store.put(key, chunks(b"x" * 2_000_000))
    assert await store.abort_uploads(key) == 0
    assert await store.get(key, 0, 1) == b"x"


@those_that(Ability.SERVES_URLS)
async def test_a_signed_url_gives_the_blob_and_its_ranges(store: Any, key: str) -> None:
    await store.put(key, b"0123456789")
    url = await store.presign_get(key, expires_in=60)
    async with httpx2.AsyncClient() as client:
        whole = await client.get(url)
        part = await client.get(url, headers={"Range": "bytes=2-4"})
        beyond = await client.get(url, headers={"Range": "bytes=10-"})
    assert (whole.status_code, whole.content) == (200, b"0123456789")
    assert (part.status_code, part.content) == (206, b"234")
    assert part.headers["content-range"] == "bytes 2-4/10"
    assert beyond.status_code == 416


@those_that(Ability.SERVES_URLS)
async def test_a_tampered_url_is_refused(store: Any, key: str) -> None:
    await store.put(key, b"x")
    await store.put(f"{key}2", b"y")
    url = await store.presign_get(key, expires_in=60)
    digit = "0" if url[-1] != "0" else "1"
    async with httpx2.AsyncClient() as client:
        answers = [
            await client.get(url[:-1] + digit),
            await client.get(url.replace(key, f"{key}2")),
            await client.get(url.partition("?")[0]),
            await client.delete(url),
        ]
    assert all(400 <= answer.status_code < 500 for answer in answers)
    assert await store.get(key) == b"x"


@those_that(Ability.SERVES_URLS)
async def test_a_url_dies_on_time(store: Any, key: str) -> None:
    await store.put(key, b"x")
    clock = SystemClock()
    url = await store.presign_get(key, expires_in=2)
    began = clock.monotonic()
    async with httpx2.AsyncClient() as client:
        assert (await client.get(url)).status_code == 200
        while (answer := await client.get(url)).status_code == 200:
            assert clock.monotonic() - began < EXPIRY_CHECK_SECONDS_MAX
    assert answer.status_code == 403
    assert clock.monotonic() - began > 0.9


@those_that(Ability.SERVES_URLS)
async def test_a_url_of_a_deleted_blob_finds_nothing(store: Any, key: str) -> None:
    await store.put(key, b"x")
    url = await store.presign_get(key, expires_in=60)
    await store.delete(key)
    async with httpx2.AsyncClient() as client:
        assert (await client.get(url)).status_code == 404


@those_that(Ability.SERVES_URLS)
@pytest.mark.parametrize("expires_in", [0, -1, 7 * 24 * 3600 + 1])
async def test_refuses_a_life_no_url_can_have(store: Any, key: str, expires_in: int) -> None:
    with pytest.raises(InvalidRequest):
        await store.presign_get(key, expires_in=expires_in)
