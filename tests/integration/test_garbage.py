"""Content that no repo holds any more goes; everything else stays, whoever pushes meanwhile."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.errors import RepoMissing
from gateway.packs.garbage import UNFINISHED_AFTER, Garbage
from gateway.packs.garbage_rows import Kind
from gateway.packs.repos import Repo
from gateway.packs.segments import SegmentWriter
from gateway.wire.messages import PushObject
from leases.audit import Auditor
from leases.errors import StoreUnavailable
from leases.steps import Step, Steps, no_steps
from tests.factories import History, make_history
from tests.fakes import MemoryStore
from tests.integration.fetching import Bench, bench_on, ids_of
from tests.integration.pushing import CALLER, CONTENT_TABLES, another_gate
from tests.leasing import connection_to, lock_waiters

SOON = timedelta()


@pytest.fixture
async def bench(engine: AsyncEngine) -> AsyncIterator[Bench]:
    async with bench_on(engine) as bench:
        yield bench


def garbage(bench: Bench, steps: Steps = no_steps) -> Garbage:
    return Garbage(bench.database, bench.gate.log, bench.store, steps=steps)


async def collect(
    bench: Bench, steps: Steps = no_steps, *, unfinished_after: timedelta = SOON
) -> Counter[Kind]:
    counted: Counter[Kind] = Counter()
    collecting = garbage(bench, steps).collect(caller=CALLER, unfinished_after=unfinished_after)
    async for removed in collecting:
        counted[removed.kind] += removed.count
    return counted


async def looked(bench: Bench) -> Counter[Kind]:
    found = garbage(bench).look(unfinished_after=SOON)
    return Counter({removed.kind: removed.count async for removed in found})


async def delete(bench: Bench, repo: Repo) -> None:
    await bench.gate.repos.delete(owner=repo.owner, slug=repo.slug, caller=CALLER)


async def check_whole(bench: Bench, slug: str, history: History) -> None:
    """A clone of the repo holds everything, and every object is the one it is called."""
    repo = bench.repos[slug]
    answer = await bench.fetch(repo.repo_id, [history.head.commit_id], share=False)
    commits, _snapshots, objects = ids_of(bench.pack(answer))
    assert commits == history.ancestry([history.head.commit_id])
    held = {one for made in history.commits.values() for one in made.manifest.values()}
    assert objects == held


def segments(bench: Bench) -> list[str]:
    return [key for key in bench.store.blobs if key.startswith("segments/")]


async def test_nothing_is_removed_that_a_repo_holds(bench: Bench) -> None:
    await bench.pushed(make_history(1))
    before, blobs = await bench.gate.counts(), dict(bench.store.blobs)
    assert await looked(bench) == {}
    assert await collect(bench) == {}
    assert await bench.gate.counts() == before
    assert bench.store.blobs == blobs


async def test_a_deleted_repo_leaves_nothing(bench: Bench) -> None:
    history = make_history(1, commits=50)
    await bench.pushed(history)
    await delete(bench, bench.repos["demo"])
    told = await looked(bench)
    assert segments(bench)
    counted = await collect(bench)
    assert {kind: counted[kind] for kind in told} == told
    assert counted[Kind.COMMIT] == len(history.commits)
    assert counted[Kind.OBJECT] == len(history.contents)
    assert set((await bench.gate.counts()).values()) == {0}
    assert await bench.gate.count("segments") == await bench.gate.count("repos") == 0
    assert segments(bench) == []
    assert await collect(bench) == {}


async def test_every_removed_id_is_named_in_an_event(bench: Bench) -> None:
    history = make_history(1)
    await bench.pushed(history)
    await delete(bench, bench.repos["demo"])
    await collect(bench)
    events = await bench.gate.log.read_stream("content/gc")
    kinds = {event.data.partition('"kind":"')[2].partition('"')[0] for event in events}
    assert kinds == {"commit", "snapshot", "object", "segment"}
    text = "".join(event.data for event in events)
    assert all(one in text for one in (*history.contents, *history.commits))
    assert (await Auditor(bench.database, bench.gate.log).verify()).ok


async def test_the_name_is_free_again(bench: Bench) -> None:
    history = make_history(1)
    await bench.pushed(history)
    old = bench.repos["demo"]
    await delete(bench, old)
    with pytest.raises(RepoMissing):
        await bench.gate.repo("demo")
    await collect(bench)
    await bench.pushed(history)
    assert bench.repos["demo"].repo_id != old.repo_id
    await check_whole(bench, "demo", history)


async def test_what_another_repo_holds_too_stays(bench: Bench) -> None:
    history = make_history(1)
    await bench.pushed(history, "one")
    await bench.pushed(history, "two")
    before = len(segments(bench))
    await delete(bench, bench.repos["one"])
    counted = await collect(bench)
    assert counted == {Kind.REPO: 1}
    assert len(segments(bench)) == before
    await check_whole(bench, "two", history)


async def test_a_base_that_only_another_repo_held_stays_with_its_deltas(bench: Bench) -> None:
    """A snapshot stands once: as a delta on what was there when it came first."""
    history = make_history(3, commits=20, files=40, merges=False)
    await bench.pushed(history, "one")
    (base,) = (await bench.database.fetch("SELECT count(base_snapshot_id) FROM snapshots"))[0]
    assert base > 0
    late = History(form=history.form, contents=history.contents)
    head = late.commit(history.head.manifest)
    await bench.pushed(late, "two")
    assert head.snapshot_id == history.head.snapshot_id
    await delete(bench, bench.repos["one"])
    await collect(bench)
    await check_whole(bench, "two", late)
    await delete(bench, bench.repos["two"])
    await collect(bench)
    assert await bench.gate.count("snapshots") == 0


async def test_history_of_other_code_is_held_by_its_commits(bench: Bench) -> None:
    """It writes commit_refs, and perhaps no other membership."""
    history = make_history(1)
    await bench.pushed(history)
    for table in ("object_refs", "snapshot_refs", "introductions"):
        await bench.database.execute(f"DELETE FROM {table}")
    await bench.database.execute("UPDATE commits SET record = NULL")
    assert await collect(bench) == {}
    await check_whole(bench, "demo", history)


async def test_a_blob_of_other_code_goes_with_its_last_object(bench: Bench) -> None:
    history = make_history(1)
    await bench.pushed(history)
    await bench.database.execute("DELETE FROM segments")
    await bench.database.execute("UPDATE mpack_index SET byte_offset = NULL, byte_length = NULL")
    await delete(bench, bench.repos["demo"])
    await collect(bench)
    assert segments(bench) == []


async def test_a_segment_with_one_held_object_stays_whole(bench: Bench) -> None:
    history = make_history(1)
    await bench.pushed(history, "one")
    kept = History(form=history.form)
    kept.commit({"a.txt": kept.content(next(iter(history.contents.values())))})
    await bench.pushed(kept, "two")
    await delete(bench, bench.repos["one"])
    counted = await collect(bench)
    assert counted[Kind.OBJECT] == len(history.contents) - 1
    assert counted[Kind.SEGMENT] == 0
    await check_whole(bench, "two", kept)


async def test_what_a_crash_of_a_push_left_goes(bench: Bench) -> None:
    await bench.database.execute(
        "INSERT INTO segments (mpack_id, storage_key, state) VALUES ('x', 'segments/x', 'pending')"
    )
    bench.store.blobs["segments/x"] = b"half"
    young = [one async for one in garbage(bench).collect(caller=CALLER)]
    assert young == []
    assert (await collect(bench))[Kind.BLOB] == 1
    assert segments(bench) == []


@pytest.mark.parametrize(
    "step", [Step.CONTENT_REMOVED, Step.SEGMENTS_CONDEMNED, Step.SEGMENTS_DELETED], ids=str
)
async def test_after_a_crash_the_next_run_finishes(bench: Bench, step: Step) -> None:
    history = make_history(1)
    await bench.pushed(history, "one")
    kept = make_history(2)
    await bench.pushed(kept, "two")
    await delete(bench, bench.repos["one"])

    class Crash(BaseException):
        pass

    def crash(reached: Step) -> None:
        if reached is step:
            raise Crash

    with pytest.raises(Crash):
        await collect(bench, crash)
    await check_whole(bench, "two", kept)
    await collect(bench)
    assert len(segments(bench)) == await bench.gate.count("segments") == 1
    await check_whole(bench, "two", kept)


async def test_a_blob_that_cannot_be_deleted_is_tried_by_the_next_run(bench: Bench) -> None:
    await bench.pushed(make_history(1))
    await delete(bench, bench.repos["demo"])
    bench.store.fail_next_deletes(1, StoreUnavailable())
    assert (await collect(bench))[Kind.FAILED] == 1
    assert (await collect(bench))[Kind.BLOB] == 1
    assert segments(bench) == []


# A push in the middle of it. ---------------------------------------------------------------------


async def found_then(bench: Bench, kind: Kind, history: History) -> int:
    """What is removed of a kind, when a push takes it over between the look and the deletion."""
    found = await garbage(bench).find(kind)
    assert found
    await bench.pushed(history, "late")
    return await garbage(bench).remove(kind, found, caller=CALLER)


@pytest.mark.parametrize("kind", [Kind.COMMIT, Kind.SNAPSHOT, Kind.OBJECT], ids=str)
async def test_what_a_push_took_over_since_it_was_found_stays(bench: Bench, kind: Kind) -> None:
    history = make_history(1)
    await bench.pushed(history)
    await delete(bench, bench.repos["demo"])
    assert await found_then(bench, kind, history) == 0
    await collect(bench)
    await check_whole(bench, "late", history)


async def test_a_push_that_relied_on_what_goes_brings_it_itself(
    bench: Bench, engine: AsyncEngine, database_url: str
) -> None:
    """The chunk was judged known; before it becomes the repo's, everything is removed."""
    history = make_history(1)
    await bench.pushed(history)
    await delete(bench, bench.repos["demo"])
    late = another_gate(bench.gate, engine)
    repo = bench.repos["late"] = await late.repo("late")
    async with connection_to(database_url) as connection:
        await connection.execute("BEGIN")
        await connection.execute("SELECT FROM repos WHERE slug = 'late' FOR UPDATE")
        pushing = asyncio.create_task(late.push_objects(repo, history))
        await lock_waiters(connection, 1)
        assert (await collect(bench))[Kind.OBJECT] == len(history.contents)
        await connection.execute("ROLLBACK")
        result = await pushing
    await late.push(repo, history.bundle())
    await late.database.close()
    assert result.stored == len(history.contents)
    await check_whole(bench, "late", history)


class SlowStore(MemoryStore):
    """Something happens before its first blob lands."""

    def __init__(self, meanwhile: Callable[[], Awaitable[None]]) -> None:
        super().__init__()
        self._meanwhile: Callable[[], Awaitable[None]] | None = meanwhile

    async def put(self, key: str, data: bytes | AsyncIterator[bytes]) -> None:
        meanwhile, self._meanwhile = self._meanwhile, None
        if meanwhile is not None:
            await meanwhile()
        await super().put(key, data)


async def test_a_segment_that_was_given_up_is_written_anew(bench: Bench) -> None:
    """An upload of more than a day: its row was condemned while its blob was on its way."""
    history = make_history(1)
    repo = bench.repos["late"] = await bench.gate.repo("late")

    async def give_up() -> None:
        assert (await collect(bench))[Kind.SEGMENT] == 1

    store = SlowStore(give_up)
    store.blobs = bench.store.blobs
    objects = [PushObject(**item) for item in history.objects()]
    await SegmentWriter(bench.database, store).store(repo.repo_id, objects, CALLER)
    await bench.gate.push(repo, history.bundle())
    await check_whole(bench, "late", history)
    live = await bench.database.fetch("SELECT storage_key FROM segments WHERE state = 'live'")
    assert [row["storage_key"] in bench.store.blobs for row in live] == [True]


async def test_pushes_deletions_and_collections_side_by_side(bench: Bench) -> None:
    """The same few histories come and go; whatever a repo holds can always be cloned."""
    chance = random.Random(7)
    pool = [make_history(seed, commits=6, files=12) for seed in (1, 1, 2)]
    done = asyncio.Event()

    async def collects() -> None:
        while not done.is_set():
            await collect(bench, unfinished_after=UNFINISHED_AFTER)

    async def pushes(name: str) -> None:
        for turn in range(6):
            history, slug = chance.choice(pool), f"{name}-{turn}"
            await bench.pushed(history, slug)
            await check_whole(bench, slug, history)
            await delete(bench, bench.repos[slug])
        await bench.pushed(pool[0], name)

    async with asyncio.TaskGroup() as group:
        collecting = group.create_task(collects())
        async with asyncio.TaskGroup() as inner:
            for name in ("one", "two", "three"):
                inner.create_task(pushes(name))
        done.set()
        await collecting
    await collect(bench)
    for name in ("one", "two", "three"):
        await check_whole(bench, name, pool[0])
    counts = await bench.gate.counts()
    assert counts["commits"] == len(pool[0].commits)
    assert set(counts) == set(CONTENT_TABLES)
