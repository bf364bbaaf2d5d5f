"""Direct uploads below HTTP: what is stored is what was hashed, in parts."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator

import pytest

from gateway.errors import Incomplete, TooLarge
from gateway.packs import segments as segments_module
from gateway.packs.uploads import Upload, Uploads, verified_content
from leases.database import Database
from leases.engine import LeaseEngine
from leases.lessor import Caller
from leases.policy import LeasePolicy
from tests.factories import History
from tests.fakes import ListingStore, MemoryStore
from tests.integration.pushing import CALLER, Gate, gate_on
from tests.invariants import check_invariants
from tests.leasing import engine_on

LARGE = 9 * 1024 * 1024


class SigningStore(ListingStore):
    """Signs uploads, too; `exchanged` takes the place of a blob after its first range was read."""

    def __init__(self) -> None:
        super().__init__()
        self.exchanged: bytes | None = None

    async def presign_put(self, key: str, *, expires_in: int) -> str:
        return f"https://blobs.example/{key}?put&expires_in={expires_in}"

    async def get(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        data = await super().get(key, start, stop)
        if self.exchanged is not None:
            self.blobs[key] = self.exchanged
        return data


def uploaded(store: MemoryStore, content: bytes, *, key: str = "transient/log/one") -> Upload:
    store.blobs[key] = content
    return Upload(hashlib.sha256(content).hexdigest(), key, len(content))


async def test_bytes_that_are_exchanged_while_they_are_read_are_found_out() -> None:
    store = SigningStore()
    content = bytes(LARGE)
    upload = uploaded(store, content)
    store.exchanged = content[:-1] + b"x"
    chunks = verified_content(store, upload)
    came = [await anext(chunks), await anext(chunks)]
    with pytest.raises(Incomplete, match=upload.object_id):
        await anext(chunks)
    assert sum(map(len, came)) < LARGE, "the end never came out"


@pytest.mark.parametrize("change", [b"", b"short", bytes(LARGE + 1)], ids=["empty", "less", "more"])
async def test_another_length_is_found_out(change: bytes) -> None:
    store = SigningStore()
    upload = uploaded(store, bytes(LARGE))
    store.blobs[upload.storage_key] = change
    if len(change) > LARGE:  # The bytes that were asked for are right: these are stored, no more.
        assert b"".join([one async for one in verified_content(store, upload)]) == bytes(LARGE)
        return
    with pytest.raises(Incomplete):
        [one async for one in verified_content(store, upload)]


@pytest.fixture
async def gate(database: Database) -> Gate:
    return gate_on(database)


@pytest.fixture
def store() -> SigningStore:
    return SigningStore()


@pytest.fixture
async def leasing(database: Database, store: SigningStore) -> AsyncIterator[LeaseEngine]:
    async with engine_on(database, store, LeasePolicy()) as leasing:
        yield leasing
    await check_invariants(database, store)


async def test_an_empty_upload_is_an_object(gate: Gate) -> None:
    repo = await gate.repo()
    upload = uploaded(gate.store, b"")
    result = await gate.segments.store_uploads(repo.repo_id, [upload], CALLER)
    assert (result.stored, result.skipped) == (1, 0)
    assert await gate.count("mpack_index") == 1


async def test_parts_before_a_failure_stand(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a large push that is tried again goes on from there."""
    monkeypatch.setattr(segments_module, "_STREAMED_BYTES_MAX", 10)
    repo = await gate.repo()
    good = [
        uploaded(gate.store, b"content %d" % number, key=f"transient/log/{number}")
        for number in range(3)
    ]
    wrong = Upload("f" * 64, good[0].storage_key, 9)
    with pytest.raises(Incomplete):
        await gate.segments.store_uploads(repo.repo_id, [*good, wrong], CALLER)
    rows = await gate.database.fetch("SELECT state, count(*) AS n FROM segments GROUP BY state")
    assert {row["state"]: row["n"] for row in rows} == {"live": 3, "pending": 1}
    again = await gate.segments.store_uploads(repo.repo_id, good, CALLER)
    assert (again.stored, again.skipped) == (0, 3)


async def test_a_known_object_is_shown_before_it_is_taken_over(gate: Gate) -> None:
    history = History()
    content = b"somebody's"
    history.content(content)
    theirs, mine = await gate.repo("theirs"), await gate.repo("mine")
    await gate.push_objects(theirs, history)
    upload = uploaded(gate.store, content)
    gate.store.blobs[upload.storage_key] = b"a guess of"
    with pytest.raises(Incomplete):
        await gate.segments.store_uploads(mine.repo_id, [upload], CALLER)
    gate.store.blobs[upload.storage_key] = content
    result = await gate.segments.store_uploads(mine.repo_id, [upload], CALLER)
    assert (result.stored, result.skipped) == (0, 1)
    assert await gate.count("segments") == 1


async def test_a_store_that_signs_no_uploads_wants_everything_inline(leasing: LeaseEngine) -> None:
    uploads = Uploads(MemoryStore(), leasing.policy, upload_bytes_max=10)
    found = await uploads.presign(leasing, "repo", ["a" * 64], caller=CALLER)
    assert (found.urls, found.inline) == ({}, ["a" * 64])


async def test_the_newest_upload_counts_and_a_revoked_one_does_not(
    leasing: LeaseEngine, database: Database, store: SigningStore
) -> None:
    uploads = Uploads(store, leasing.policy, upload_bytes_max=10)
    object_id = hashlib.sha256(b"wanted").hexdigest()
    for _ in range(3):
        await uploads.presign(leasing, "repo", [object_id], caller=CALLER)
    rows = await database.fetch("SELECT mpack_id, storage_key FROM mpack_leases ORDER BY mpack_id")
    first, second, third = (row["storage_key"] for row in rows)
    await leasing.lessor.revoke(rows[2]["mpack_id"], reason="a test", caller=Caller(actor="test"))
    async with database.engine.connect() as reader:
        candidates = await uploads.candidates(reader, "repo", [object_id, "b" * 64])
        assert await uploads.candidates(reader, "another repo", [object_id]) == {}
    assert candidates == {object_id: [second, first]}
    assert third not in candidates[object_id]
    store.blobs[first] = b"wanted"
    assert await uploads.arrived(candidates) == [Upload(object_id, first, 6)]
    store.blobs[second] = bytes(11)
    with pytest.raises(TooLarge, match=object_id):
        await uploads.arrived(candidates)
