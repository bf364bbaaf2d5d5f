"""Histories that other code wrote: no records, no introductions, no segments, no offsets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Any

import msgpack
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from gateway.errors import IncompleteRepo
from leases.database import Database
from leases.errors import Corrupt
from leases.ports import BlobInfo
from tests.databases import NewDatabase, run_apart
from tests.factories import EPOCH, History, MadeCommit, histories, make_history
from tests.fakes import MemoryStore
from tests.integration.fetching import Bench, bench_on, ids_of, lacking, settings_of

REPO = "repo-of-the-host"


@pytest.fixture
async def bench(engine: AsyncEngine) -> AsyncIterator[Bench]:
    async with bench_on(engine, settings=settings_of(build_read_bytes_max=4096)) as bench:
        yield bench


async def write_history(
    database: Database, history: History, *, graph: bool = True, deltas: bool = False
) -> None:
    """Commits and snapshots as a host's own code writes them."""
    previous: MadeCommit | None = None
    for made in history.commits.values():
        await database.execute(
            "INSERT INTO commits (commit_id, branch, parent_ids, message, author, timestamp,"
            " snapshot_id) VALUES ($1, 'main', $2, $3, 'Ada', $4, $5) ON CONFLICT DO NOTHING",
            made.commit_id,
            list(made.parent_ids),
            made.record["message"],
            datetime.fromisoformat(made.committed_at),
            made.snapshot_id,
        )
        await database.execute(
            "INSERT INTO commit_refs VALUES ($1, $2) ON CONFLICT DO NOTHING", REPO, made.commit_id
        )
        if graph:
            await database.execute(
                "INSERT INTO commit_graph VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
                made.commit_id,
                list(made.parent_ids),
                made.generation,
                made.snapshot_id,
            )
        await write_snapshot(database, made, base=previous if deltas else None)
        previous = made


async def write_snapshot(database: Database, made: MadeCommit, *, base: MadeCommit | None) -> None:
    whole: bytes | None = msgpack.packb(dict(made.manifest))
    delta: bytes | None = None
    if base is not None and base.snapshot_id != made.snapshot_id:
        changes: dict[str, str | None] = dict.fromkeys(base.manifest.keys() - made.manifest.keys())
        changes |= {p: o for p, o in made.manifest.items() if base.manifest.get(p) != o}
        whole, delta = None, msgpack.packb(changes)
    await database.execute(
        "INSERT INTO snapshots (snapshot_id, manifest_blob, base_snapshot_id, delta_blob,"
        " entry_count, created_at) VALUES ($1, $2, $3, $4, $5, now()) ON CONFLICT DO NOTHING",
        made.snapshot_id,
        whole,
        base.snapshot_id if delta and base else None,
        delta,
        len(made.manifest),
    )


async def write_index(
    database: Database, ids: Mapping[str, tuple[int | None, int | None]], blob_id: str
) -> None:
    for object_id, (offset, length) in ids.items():
        await database.execute(
            "INSERT INTO mpack_index VALUES ('object', $1, $2, $3, $4)",
            object_id,
            blob_id,
            offset,
            length,
        )


async def write_pack(
    bench: Bench, history: History, *, compressed: bool = False, blob_id: str = "foreign-pack"
) -> None:
    """One whole pack of everything, without offsets."""
    pack: dict[str, Any] = {
        "commits": [{"commit_id": "x"}],
        "objects": [
            {"content": content, "path": "p", "object_id": "sha256:" + object_id}
            for object_id, content in history.contents.items()
        ],
        "extra": [1, {"a": None}],
    }
    blob = msgpack.packb(pack)
    bench.store.blobs[f"segments/{blob_id}"] = (
        zstandard.ZstdCompressor().compress(blob) if compressed else blob
    )
    await write_index(bench.database, dict.fromkeys(history.contents, (None, None)), blob_id)


async def write_ranges(bench: Bench, history: History, *, entries: bool) -> None:
    """One blob of entries, or of bare contents, with offsets but without a segments row."""
    blob, places = bytearray(), {}
    for object_id, content in history.contents.items():
        entry = msgpack.packb({"object_id": object_id, "content": content, "path": "p"})
        data = entry if entries else content
        places[object_id] = (len(blob), len(data))
        blob += data
    bench.store.blobs["segments/foreign-ranges"] = bytes(blob)
    await write_index(bench.database, places, "foreign-ranges")


@pytest.mark.parametrize("kind", ["pack", "zstd pack", "entries", "contents"])
async def test_objects_are_found_however_they_are_stored(bench: Bench, kind: str) -> None:
    history = make_history(4, commits=12, files=6, size_bytes=700)
    await write_history(bench.database, history)
    if kind in ("pack", "zstd pack"):
        await write_pack(bench, history, compressed=kind == "zstd pack")
    else:
        await write_ranges(bench, history, entries=kind == "entries")
    head = history.head.commit_id
    pack = bench.pack(await bench.fetch(REPO, ["sha256:" + head]))
    contents = {one["object_id"]: one["content"] for one in pack["objects"]}
    expected = lacking(history, [head], [])[2]
    assert contents == {"sha256:" + one: history.contents[one] for one in expected}


async def test_a_store_that_tells_sizes_is_read_by_ranges(engine: AsyncEngine) -> None:
    class Heads(MemoryStore):
        async def head(self, key: str) -> BlobInfo | None:
            if key not in self.blobs:
                return None
            return BlobInfo(key=key, size_bytes=len(self.blobs[key]), modified_at=EPOCH)

    settings = settings_of(build_read_bytes_max=4096)
    async with bench_on(engine, store=Heads(), settings=settings) as bench:
        history = make_history(4, commits=12, files=6, size_bytes=900)
        await write_history(bench.database, history)
        await write_pack(bench, history)
        pack = bench.pack(await bench.fetch(REPO, [history.head.commit_id]))
        assert ids_of(pack) == lacking(history, [history.head.commit_id], [])
        assert len(bench.store.calls_of("get", "segments/foreign-pack")) > 3


async def test_records_are_made_of_the_columns(bench: Bench) -> None:
    """All keys that clients know, and a time with which the id recomputes."""
    history = History()
    first = history.commit({"a": history.content(b"a")}, committed_at="2026-02-03T04:05:06Z")
    history.commit({"a": history.content(b"b")}, parents=[first], message="second")
    await write_history(bench.database, history)
    await write_pack(bench, history)
    pack = bench.pack(await bench.fetch(REPO, [history.head.commit_id]))
    for record in pack["commits"]:
        made = history.commits[record["commit_id"]]
        assert record.keys() == made.record.keys()
        same = ("snapshot_id", "message", "committed_at", "parent_commit_id", "parent2_commit_id")
        for key in (*same, "branch", "author"):
            assert record[key] == made.record[key]


@pytest.mark.parametrize("graph", [True, False], ids=["with graph", "without graph"])
@pytest.mark.parametrize("deltas", [True, False], ids=["deltas", "whole"])
def test_packs_are_exact_without_introductions(
    new_database: NewDatabase, graph: bool, deltas: bool
) -> None:
    async def check(url: str, history: History, want: list[str], have: list[str]) -> None:
        engine = create_async_engine(url)
        try:
            async with bench_on(engine) as bench:
                await write_history(bench.database, history, graph=graph, deltas=deltas)
                await write_pack(bench, history)
                answer = await bench.fetch(REPO, want, have)
                assert ids_of(bench.pack(answer)) == lacking(history, want, have)
        finally:
            await engine.dispose()

    @settings(suppress_health_check=[HealthCheck.too_slow], max_examples=8)
    @given(histories(), st.data())
    def exact(history: History, data: st.DataObject) -> None:
        ids = st.lists(st.sampled_from(sorted(history.commits)), max_size=3)
        want, have = data.draw(ids.filter(bool)), data.draw(ids)
        with new_database() as url:
            run_apart(check(url, history, want, [*have, "f" * 64]))

    exact()


async def test_pushed_on_top_of_foreign_history(bench: Bench) -> None:
    """A file comes back that only the foreign part had: the client, who has that part, has it."""
    old = History()
    first = old.commit({"a": old.content(b"a"), "b": old.content(b"b")})
    second = old.commit({"a": old.content(b"a")}, parents=[first])
    await write_history(bench.database, old)
    await write_pack(bench, old)
    repo = await bench.gate.repo()
    for table in ("commit_refs",):
        await bench.database.execute(f"UPDATE {table} SET repo_id = $1", repo.repo_id)
    for table, ids in (("object_refs", old.contents), ("snapshot_refs", _snapshots(old))):
        await bench.database.execute(
            f"INSERT INTO {table} SELECT $1, unnest($2::text[])", repo.repo_id, list(ids)
        )
    third = old.commit(
        {"a": old.content(b"a"), "b": old.content(b"b"), "c": old.content(b"c")}, parents=[second]
    )
    await bench.gate.push(repo, old.bundle([third], with_objects=True))
    pack = bench.pack(await bench.fetch(repo.repo_id, [third.commit_id], [second.commit_id]))
    assert [one["content"] for one in pack["objects"]] == [b"c"]


def _snapshots(history: History) -> set[str]:
    return {one.snapshot_id for one in history.commits.values()}


async def test_foreign_content_is_checked_by_its_hash(bench: Bench) -> None:
    history = make_history(4, commits=2)
    await write_history(bench.database, history)
    victim = next(iter(history.head.manifest.values()))
    wrong = {**history.contents, victim: b"something else"}
    await write_pack(bench, History(contents=wrong))
    with pytest.raises(Corrupt):
        await bench.fetch(REPO, [history.head.commit_id])
    assert bench.transient() == []


@pytest.mark.parametrize("blob", [None, b"", b"\xc1", b"\x93\x01\x02\x03", b"\x28\xb5\x2f\xfd\x00"])
async def test_a_blob_that_is_no_pack_is_told(bench: Bench, blob: bytes | None) -> None:
    history = make_history(4, commits=2)
    await write_history(bench.database, history)
    await write_pack(bench, history)
    if blob is None:
        del bench.store.blobs["segments/foreign-pack"]
    else:
        bench.store.blobs["segments/foreign-pack"] = blob
    with pytest.raises(IncompleteRepo if blob is None else Corrupt):
        await bench.fetch(REPO, [history.head.commit_id])


async def test_a_pending_segment_is_not_read(bench: Bench) -> None:
    """Its blob may not be there yet; another place of the object serves."""
    history = make_history(4, commits=2)
    await write_history(bench.database, history)
    await write_pack(bench, history, blob_id="b")
    await bench.database.execute(
        "INSERT INTO segments (mpack_id, storage_key, state) VALUES ('a', 'segments/a', 'pending')"
    )
    await write_index(bench.database, dict.fromkeys(history.contents, (0, 10)), "a")
    pack = bench.pack(await bench.fetch(REPO, [history.head.commit_id]))
    assert ids_of(pack) == lacking(history, [history.head.commit_id], [])


async def test_a_cycle_is_corrupt_and_does_not_hang(bench: Bench) -> None:
    for one, other in (("a", "b"), ("b", "a")):
        await bench.database.execute(
            "INSERT INTO commits (commit_id, branch, parent_ids, message, author, timestamp)"
            " VALUES ($1, 'main', $2, '', '', now())",
            one,
            [other],
        )
        await bench.database.execute("INSERT INTO commit_refs VALUES ($1, $2)", REPO, one)
    with pytest.raises(Corrupt):
        await bench.fetch(REPO, ["a"])
