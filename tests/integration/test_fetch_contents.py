"""A pack holds exactly closure(want) - closure(have): commits, snapshots and objects."""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from gateway.client import unpack
from gateway.errors import IncompleteRepo, UnknownCommit
from gateway.packs.manifest import CHAIN_DEPTH_MAX, delta_between
from gateway.wire.ids import IdForm
from tests.databases import NewDatabase, run_apart
from tests.factories import History, histories, make_history
from tests.fakes import MemoryStore
from tests.integration.fetching import (
    Bench,
    bench_on,
    ids_of,
    lacking,
    settings_of,
    told_whole,
    unpacked,
)


@pytest.fixture
async def bench(engine: AsyncEngine) -> AsyncIterator[Bench]:
    async with bench_on(engine, settings=settings_of(build_read_bytes_max=4096)) as bench:
        yield bench


async def test_a_clone_brings_everything(bench: Bench) -> None:
    history = make_history(3, commits=40, files=20, size_bytes=500)
    repo_id = await bench.pushed(history)
    head = history.head.commit_id
    answer = await bench.fetch(repo_id, [head, head])
    pack = bench.pack(answer)
    assert ids_of(pack) == lacking(history, [head], [])
    assert list(pack) == ["version", "commits", "snapshots", "objects"]
    assert {one["object_id"]: one["content"] for one in pack["objects"]} == {
        object_id: history.contents[object_id] for object_id in ids_of(pack)[2]
    }
    assert [msgpack.packb(record) for record in pack["commits"]] == [
        history.commits[record["commit_id"]].packed for record in pack["commits"]
    ]
    for snapshot in pack["snapshots"]:
        made = next(
            one for one in history.commits.values() if one.snapshot_id == snapshot["snapshot_id"]
        )
        assert snapshot["manifest"] == made.manifest
    stored = bench.stored(answer)
    assert answer["sha256"] == hashlib.sha256(stored).hexdigest()
    assert answer["size_bytes"] == len(stored)
    assert answer["counts"] == dict(
        zip(("commits", "snapshots", "objects"), map(len, ids_of(pack)), strict=True)
    )


# Together 2,000 cases.
_GRAPHS, _QUESTIONS = 25, 80


@pytest.mark.timeout(300)
def test_packs_are_exact_for_any_graph(new_database: NewDatabase) -> None:
    """Merges, several roots, contents that come back, haves on other branches.

    A pack is closure(want) - closure(have), and with it whoever had `have` holds all of `want`.
    """

    async def check(url: str, history: History, chance: random.Random) -> None:
        ids = sorted(history.commits)
        engine = create_async_engine(url)
        try:
            # Without URLs there are no leases, which make most of a fetch's time.
            async with bench_on(engine, store=MemoryStore(supports_presign=False)) as bench:
                repo_id = await bench.pushed_all(history)
                for _ in range(_QUESTIONS):
                    want = chance.choices(ids, k=chance.randint(1, 3))
                    have = [*chance.sample(ids, min(len(ids), chance.randint(0, 3))), "f" * 64]
                    answer = await bench.fetch(repo_id, want, have)
                    assert answer["mpack"] is not None
                    whole = unpacked(answer["mpack"])
                    answer = await bench.fetch(repo_id, want, have, snapshots="delta")
                    assert answer["mpack"] is not None
                    assert told_whole(unpacked(answer["mpack"])) == whole
                    pack = ids_of(whole)
                    assert pack == lacking(history, want, have)
                    held, needed = lacking(history, have, []), lacking(history, want, [])
                    for brought, before, after in zip(pack, held, needed, strict=True):
                        assert after <= brought | before
        finally:
            await engine.dispose()

    @settings(suppress_health_check=[HealthCheck.too_slow], max_examples=_GRAPHS)
    @given(histories(), st.integers(0, 1 << 32))
    def exact(history: History, seed: int) -> None:
        with new_database() as url:
            run_apart(check(url, history, random.Random(seed)))

    exact()


async def test_a_merge_costs_what_is_new(bench: Bench) -> None:
    history = make_history(11, commits=30, merges=False)
    base = history.head
    side = history.commit({**base.manifest, "side": history.content(b"side")}, parents=[base])
    main = history.commit({**base.manifest, "main": history.content(b"main")}, parents=[base])
    merge = history.commit({**side.manifest, **main.manifest}, parents=[main, side])
    repo_id = await bench.pushed(history)
    pack = bench.pack(await bench.fetch(repo_id, [merge.commit_id], [main.commit_id]))
    assert {one["commit_id"] for one in pack["commits"]} == {side.commit_id, merge.commit_id}
    assert [one["content"] for one in pack["objects"]] == [b"side"]


async def test_what_another_branch_of_the_client_holds_is_not_sent(bench: Bench) -> None:
    """The same content, introduced on a branch that the wanted one does not contain."""
    history = make_history(1, commits=2)
    base = history.head
    shared = history.content(b"the same on both")
    side = history.commit({**base.manifest, "x": shared}, parents=[base])
    main = history.commit({**base.manifest, "y": shared}, parents=[base])
    tip = history.commit({**main.manifest, "z": history.content(b"z")}, parents=[main])
    repo_id = await bench.pushed_all(history)
    plain = await bench.fetch(repo_id, [tip.commit_id], [base.commit_id])
    other = await bench.fetch(repo_id, [tip.commit_id], [base.commit_id, side.commit_id])
    assert shared in ids_of(bench.pack(plain))[2]
    assert shared not in ids_of(bench.pack(other))[2]
    assert other["mpack_id"] != plain["mpack_id"]


async def test_the_answer_speaks_in_the_form_of_the_request(bench: Bench) -> None:
    history = make_history(2, commits=6, files=3)
    repo_id = await bench.pushed(history)
    head = history.head.commit_id
    bare = bench.pack(await bench.fetch(repo_id, [head]))
    answer = await bench.fetch(repo_id, ["sha256:" + head])
    prefixed = bench.pack(answer)
    write = IdForm.PREFIXED.write
    assert [one["object_id"] for one in prefixed["objects"]] == [
        write(one["object_id"]) for one in bare["objects"]
    ]
    assert [one["content"] for one in prefixed["objects"]] == [
        one["content"] for one in bare["objects"]
    ]
    for one, other in zip(prefixed["snapshots"], bare["snapshots"], strict=True):
        assert one["snapshot_id"] == write(other["snapshot_id"])
        assert one["manifest"] == {path: write(text) for path, text in other["manifest"].items()}
    assert prefixed["commits"] == bare["commits"], "records stay as they came"


async def test_equal_requests_give_equal_bytes(bench: Bench) -> None:
    history = make_history(8, commits=25, files=8)
    repo_id = await bench.pushed(history)
    wants = [history.head.commit_id]
    first = await bench.fetch(repo_id, wants, share=False)
    again = await bench.fetch(repo_id, wants, share=False)
    assert first["mpack_id"] != again["mpack_id"]
    assert bench.stored(first) == bench.stored(again)


async def test_a_compressed_pack_is_the_same_pack(bench: Bench) -> None:
    history = make_history(8, commits=25, files=8)
    repo_id = await bench.pushed(history)
    wants = [history.head.commit_id]
    raw = await bench.fetch(repo_id, wants)
    small = await bench.fetch(repo_id, wants, encoding="zstd")
    assert small["size_bytes"] < raw["size_bytes"]
    assert bench.pack(small) == bench.pack(raw)
    assert small["sha256"] == hashlib.sha256(bench.stored(small)).hexdigest()


@pytest.mark.parametrize("prefix", ["", "sha256:"])
async def test_snapshots_may_be_told_by_their_changes(
    bench: Bench, tmp_path: Path, prefix: str
) -> None:
    """Longer than a stored chain may be, so that some stored manifests are whole."""
    history = make_history(8, commits=3 * CHAIN_DEPTH_MAX, files=30)
    repo_id = await bench.pushed(history)
    wants = [prefix + history.head.commit_id]
    whole = await bench.fetch(repo_id, wants)
    small = await bench.fetch(repo_id, wants, snapshots="delta")
    assert small["mpack_id"] != whole["mpack_id"]
    assert small["size_bytes"] < whole["size_bytes"] / 2
    assert small["counts"] == whole["counts"]
    pack = bench.pack(small)
    assert pack["version"] == 2
    assert sum("manifest" in entry for entry in pack["snapshots"]) == 1
    assert told_whole(pack) == bench.pack(whole)
    stored = tmp_path / "pack"
    stored.write_bytes(bench.stored(small))
    with unpack(stored) as read:
        assert len(read.snapshots) == small["counts"]["snapshots"]
    again = await bench.fetch(repo_id, wants, snapshots="delta", share=False)
    assert bench.stored(again) == bench.stored(small)


async def test_changes_depend_on_content_alone(bench: Bench) -> None:
    """Equal bytes, although the manifest is stored as changes on another repo's snapshot."""
    history = make_history(8, commits=2, files=30, merges=False)
    first, second = history.commits.values()
    elsewhere = History(contents=dict(history.contents))
    other = elsewhere.commit(dict(first.manifest) | {"x": elsewhere.content(b"x")})
    elsewhere.commit(second.manifest, parents=[other])
    before = await bench.database.fetch("SELECT snapshot_id FROM snapshots")
    await bench.pushed(elsewhere, "elsewhere")
    repo_id = await bench.pushed(history)
    pack = bench.pack(await bench.fetch(repo_id, [second.commit_id], snapshots="delta"))
    assert not before
    changed = pack["snapshots"][1]
    assert changed["base_snapshot_id"] == first.snapshot_id
    assert changed["delta"] == delta_between(first.manifest, second.manifest)


async def test_a_thin_pack_of_changes_stands_alone(bench: Bench) -> None:
    """The client's own snapshots are no bases: a pack can be checked without any other."""
    history = make_history(8, commits=10, merges=False)
    *_, before, parent, head = history.commits.values()
    repo_id = await bench.pushed(history)
    wants, haves = [head.commit_id], [before.commit_id]
    pack = bench.pack(await bench.fetch(repo_id, wants, haves, snapshots="delta"))
    assert [one.get("base_snapshot_id") for one in pack["snapshots"]] == [None, parent.snapshot_id]
    assert told_whole(pack) == bench.pack(await bench.fetch(repo_id, wants, haves))


async def test_a_missing_snapshot_is_a_hole_of_a_pack_of_changes_too(bench: Bench) -> None:
    history = make_history(1, commits=3)
    repo_id = await bench.pushed(history)
    gone = history.head.snapshot_id
    await bench.database.execute("DELETE FROM snapshots WHERE snapshot_id = $1", gone)
    with pytest.raises(IncompleteRepo) as refused:
        await bench.fetch(repo_id, [history.head.commit_id], snapshots="delta")
    assert refused.value.fields["missing"] == [gone]


async def test_an_unknown_want_is_not_found(bench: Bench) -> None:
    history = make_history(1, commits=2)
    repo_id = await bench.pushed(history)
    elsewhere = make_history(2, commits=2)
    await bench.pushed(elsewhere, "other")
    for want in (["0" * 64], [elsewhere.head.commit_id], ["\0"], ["\ud800"]):
        with pytest.raises(UnknownCommit) as refused:
            await bench.fetch(repo_id, [history.head.commit_id, *want])
        assert refused.value.fields["missing"] == want


async def test_nothing_of_a_pack_with_a_hole_is_sent(bench: Bench) -> None:
    history = make_history(1, commits=3)
    repo_id = await bench.pushed(history)
    gone = next(iter(history.head.manifest.values()))
    await bench.database.execute("DELETE FROM mpack_index WHERE entity_id = $1", gone)
    with pytest.raises(IncompleteRepo) as refused:
        await bench.fetch(repo_id, [history.head.commit_id])
    assert refused.value.fields["missing"] == [gone]
    assert bench.transient() == []


async def test_a_segment_whose_blob_is_gone_is_told(bench: Bench) -> None:
    history = make_history(1, commits=3)
    repo_id = await bench.pushed(history)
    bench.store.blobs.clear()
    with pytest.raises(IncompleteRepo):
        await bench.fetch(repo_id, [history.head.commit_id])


async def test_objects_larger_than_a_window_come_in_pieces(bench: Bench) -> None:
    history = History()
    large = bytes(range(256)) * 500
    first = history.commit({"large": history.content(large), "small": history.content(b"s")})
    repo_id = await bench.pushed(history)
    for want in (first.commit_id, "sha256:" + first.commit_id):
        pack = bench.pack(await bench.fetch(repo_id, [want]))
        assert [one["content"] for one in pack["objects"]] == [large, b"s"]
    assert len(bench.store.calls_of("get")) > 30


async def test_up_to_date_is_an_empty_pack(bench: Bench) -> None:
    history = make_history(1, commits=3)
    repo_id = await bench.pushed(history)
    head = history.head.commit_id
    answer = await bench.fetch(repo_id, [head], [head])
    assert ids_of(bench.pack(answer)) == (set(), set(), set())
