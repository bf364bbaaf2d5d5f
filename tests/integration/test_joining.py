"""Small segments become large ones, whoever pushes, fetches, removes, purges or dies meanwhile."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.packs.garbage import Garbage
from gateway.packs.garbage_rows import Kind
from gateway.packs.joining import Joining
from gateway.packs.policy import PackPolicy
from gateway.packs.purge import Purge
from gateway.wire.messages import PushObject
from leases.audit import Auditor
from leases.errors import StoreUnavailable
from leases.revocation import Revocation
from leases.steps import Step, Steps, no_steps
from tests.factories import History, make_history
from tests.fakes import MemoryStore
from tests.integration.fetching import Bench, bench_on, ids_of
from tests.integration.pushing import CALLER

SMALL = PackPolicy(join_segments_min=2)
SECRET = b"the secret that somebody pushed by mistake"


@pytest.fixture
async def bench(engine: AsyncEngine) -> AsyncIterator[Bench]:
    async with bench_on(engine) as bench:
        yield bench


def joining(bench: Bench, steps: Steps = no_steps) -> Joining:
    return Joining(bench.database, bench.gate.log, bench.store, policy=SMALL, steps=steps)


async def join(bench: Bench, steps: Steps = no_steps) -> Counter[Kind]:
    counted: Counter[Kind] = Counter()
    async for part in joining(bench, steps).join(caller=CALLER):
        counted[part.kind] += part.count
    return counted


async def collect(bench: Bench, keep_joined: timedelta = timedelta()) -> None:
    garbage = Garbage(bench.database, bench.gate.log, bench.store)
    async for _ in garbage.collect(
        caller=CALLER, unfinished_after=timedelta(), keep_joined=keep_joined
    ):
        pass


async def collect_condemned(bench: Bench) -> None:
    """As a `gc` beside pushes does: what is pending may be theirs."""
    garbage = Garbage(bench.database, bench.gate.log, bench.store)
    async for _ in garbage.collect(caller=CALLER):
        pass


async def pushed_in_chunks(bench: Bench, history: History, slug: str = "demo") -> str:
    """A segment for each object, as many small pushes leave them."""
    repo = bench.repos[slug] = await bench.gate.repo(slug)
    for item in history.objects():
        await bench.gate.segments.store(repo.repo_id, [PushObject(**item)], CALLER)
    await bench.gate.push(repo, history.bundle(), force=True)
    return repo.repo_id


async def live(bench: Bench) -> list[str]:
    rows = await bench.database.fetch("SELECT storage_key FROM segments WHERE state = 'live'")
    return [row["storage_key"] for row in rows]


def blobs(bench: Bench) -> list[str]:
    return [key for key in bench.store.blobs if key.startswith("segments/")]


async def check_whole(bench: Bench, history: History, slug: str = "demo") -> str:
    """A pack of the repo holds all that its head holds; its hash."""
    repo_id = bench.repos[slug].repo_id
    answer = await bench.fetch(repo_id, [history.head.commit_id], share=False)
    commits, _snapshots, objects = ids_of(bench.pack(answer))
    below = history.ancestry([history.head.commit_id])
    assert commits == below
    assert objects == {one for made in below for one in history.commits[made].manifest.values()}
    return str(answer["sha256"])


async def test_many_small_segments_become_one_and_packs_stay_the_same(bench: Bench) -> None:
    history = make_history(1, commits=20)
    await pushed_in_chunks(bench, history)
    before = await check_whole(bench, history)
    count = len(history.contents)
    assert len(await live(bench)) == count
    planned = [part.count async for part in joining(bench).look()]
    assert await join(bench) == {Kind.JOINED: count}
    assert sum(planned) == count
    assert len(await live(bench)) == 1
    assert await check_whole(bench, history) == before
    assert await join(bench) == {}
    rows = await bench.database.fetch("SELECT DISTINCT storage_uri FROM objects")
    assert [row["storage_uri"] for row in rows] == await live(bench)
    events = await bench.gate.log.read_stream("content/gc")
    assert [event.type for event in events] == ["segments.joined"]
    assert (await Auditor(bench.database, bench.gate.log).verify()).ok


async def test_old_blobs_stay_for_as_long_as_was_said(bench: Bench) -> None:
    history = make_history(1)
    await pushed_in_chunks(bench, history)
    await join(bench)
    await collect(bench, timedelta(days=1))
    assert len(blobs(bench)) == len(history.contents) + 1
    await collect(bench)
    assert blobs(bench) == await live(bench)
    assert await bench.gate.count("segments") == 1
    await check_whole(bench, history)


async def test_repos_keep_segments_of_their_own(bench: Bench) -> None:
    histories = {f"repo-{number}": make_history(number) for number in range(3)}
    for slug, history in histories.items():
        await pushed_in_chunks(bench, history, slug)
    await join(bench)
    assert len(await live(bench)) == 3
    for slug, history in histories.items():
        await check_whole(bench, history, slug)


async def test_what_is_not_small_or_not_ours_is_left_alone(bench: Bench) -> None:
    """Large segments, pending ones of pushes, blobs that other code wrote."""
    await pushed_in_chunks(bench, make_history(1))
    await bench.database.execute("UPDATE segments SET size_bytes = 2000000")
    assert await join(bench) == {}
    await bench.database.execute("UPDATE segments SET size_bytes = 1, codec = 'zstd'")
    assert await join(bench) == {}
    await bench.database.execute("UPDATE segments SET codec = 'raw', state = 'pending'")
    assert await join(bench) == {}
    await bench.database.execute("UPDATE segments SET state = 'live'")
    await bench.database.execute("UPDATE mpack_index SET byte_offset = NULL")
    assert await join(bench) == {}


async def test_an_object_that_lies_twice_lies_once_behind_it(bench: Bench) -> None:
    """Two pushes at once store it each."""
    history = make_history(1)
    await pushed_in_chunks(bench, history)
    (one,) = await bench.database.fetch("SELECT * FROM mpack_index LIMIT 1")
    key = bench.store.blobs[f"segments/{one['mpack_id']}"]
    bench.store.blobs["segments/twin"] = key
    await bench.database.execute(
        "INSERT INTO segments (mpack_id, storage_key, state, size_bytes)"
        " VALUES ('twin', 'segments/twin', 'live', 9)"
    )
    await bench.database.execute(
        "INSERT INTO mpack_index SELECT entity_type, entity_id, 'twin', byte_offset, byte_length"
        " FROM mpack_index WHERE mpack_id = $1",
        one["mpack_id"],
    )
    assert await join(bench) == {Kind.JOINED: len(history.contents) + 1}
    assert await bench.gate.count("mpack_index") == len(history.contents)
    await check_whole(bench, history)


@pytest.mark.parametrize("harm", [b"", b"rotten" * 40], ids=["gone", "corrupt"])
async def test_a_segment_that_is_not_what_it_should_be_is_told_and_left(
    bench: Bench, harm: bytes
) -> None:
    history = make_history(1)
    await pushed_in_chunks(bench, history)
    key = (await live(bench))[2]
    if harm:
        bench.store.blobs[key] = harm
    else:
        del bench.store.blobs[key]
    assert await join(bench) == {Kind.JOINED: len(history.contents) - 1, Kind.FAILED: 1}
    assert len(await live(bench)) == 2
    assert key in await live(bench)


async def test_a_store_that_is_out_ends_it_and_nothing_has_moved(bench: Bench) -> None:
    history = make_history(1)
    await pushed_in_chunks(bench, history)
    before = await live(bench)

    class Failing(MemoryStore):
        async def put(self, key: str, data: bytes | AsyncIterator[bytes]) -> None:
            raise OSError(key, data)

    store = Failing()
    store.blobs = bench.store.blobs
    work = Joining(bench.database, bench.gate.log, store, policy=SMALL).join(caller=CALLER)
    with pytest.raises(StoreUnavailable):
        await anext(work)
    assert await live(bench) == before
    await check_whole(bench, history)


JOINS = (Step.JOIN_PENDING, Step.JOIN_PUT, Step.SEGMENTS_JOINED)


@pytest.mark.parametrize("step", JOINS, ids=str)
async def test_after_a_crash_nothing_is_lost_and_the_next_run_finishes(
    bench: Bench, step: Step
) -> None:
    class Crash(BaseException):
        pass

    def crash(reached: Step) -> None:
        if reached is step:
            raise Crash

    history = make_history(1)
    await pushed_in_chunks(bench, history)
    with pytest.raises(Crash):
        await join(bench, crash)
    await check_whole(bench, history)
    await join(bench)
    await collect(bench)
    assert blobs(bench) == await live(bench)
    assert len(blobs(bench)) == await bench.gate.count("segments") == 1
    await check_whole(bench, history)


# Somebody else, between the copy and the move. ---------------------------------------------------


class Meanwhile(MemoryStore):
    """Lets something happen behind the first put of a segment."""

    def __init__(self, blobs: dict[str, bytes], happens: Callable[[], Awaitable[object]]) -> None:
        super().__init__()
        self.blobs = blobs
        self._happens: Callable[[], Awaitable[object]] | None = happens

    async def put(self, key: str, data: bytes | AsyncIterator[bytes]) -> None:
        await super().put(key, data)
        happens, self._happens = self._happens, None
        if happens is not None:
            await happens()


async def joined_while(bench: Bench, happens: Callable[[], Awaitable[object]]) -> Counter[Kind]:
    store = Meanwhile(bench.store.blobs, happens)
    work = Joining(bench.database, bench.gate.log, store, policy=SMALL)
    return Counter({part.kind: part.count async for part in work.join(caller=CALLER)})


def purge(bench: Bench) -> Purge:
    revocation = Revocation(bench.database, bench.gate.log, replica="test")
    return Purge(bench.database, bench.gate.log, bench.store, revocation=revocation)


async def with_secret(bench: Bench) -> str:
    history = make_history(1)
    secret = history.content(SECRET)
    await pushed_in_chunks(bench, history)
    return secret


def holding_secret(bench: Bench) -> list[str]:
    return [key for key in blobs(bench) if SECRET in bench.store.blobs[key]]


async def test_a_purge_meanwhile_leaves_no_copy(bench: Bench) -> None:
    secret = await with_secret(bench)

    async def purge_it() -> None:
        await purge(bench).purge(secret, reason="test", caller=CALLER)

    assert await joined_while(bench, purge_it) == {}
    assert holding_secret(bench) == []
    assert sorted(blobs(bench)) == sorted(await live(bench))
    assert (await join(bench))[Kind.JOINED] > 0


async def test_a_purge_behind_it_leaves_no_copy_in_the_old_segments(bench: Bench) -> None:
    secret = await with_secret(bench)
    await join(bench)
    assert len(holding_secret(bench)) == 2
    await purge(bench).purge(secret, reason="test", caller=CALLER)
    assert holding_secret(bench) == []


async def test_nothing_moves_when_an_object_went_meanwhile(bench: Bench) -> None:
    history = make_history(1)
    await pushed_in_chunks(bench, history)
    before = await live(bench)
    gone = next(iter(history.contents))

    async def remove() -> None:
        await bench.database.execute("DELETE FROM mpack_index WHERE entity_id = $1", gone)

    assert await joined_while(bench, remove) == {}
    assert sorted(blobs(bench)) == sorted(before)
    assert sorted(await live(bench)) == sorted(before)


async def test_two_at_once_join_once(bench: Bench) -> None:
    history = make_history(1)
    await pushed_in_chunks(bench, history)
    assert await joined_while(bench, lambda: join(bench)) == {}
    assert len(await live(bench)) == 1
    await check_whole(bench, history)


async def test_a_fetch_that_was_planned_before_reads_the_old_blobs(engine: AsyncEngine) -> None:
    class Held(MemoryStore):
        """Holds the first read of a segment once it is told to."""

        holds = False

        def __init__(self) -> None:
            super().__init__()
            self.reached, self.go_on = asyncio.Event(), asyncio.Event()

        async def get(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
            if self.holds and key.startswith("segments/"):
                self.holds = False
                self.reached.set()
                await self.go_on.wait()
            return await super().get(key, start, stop)

    store = Held()
    async with bench_on(engine, store=store) as bench:
        history = make_history(1)
        await pushed_in_chunks(bench, history)
        store.holds = True
        fetching = asyncio.create_task(check_whole(bench, history))
        await store.reached.wait()
        assert (await join(bench))[Kind.JOINED] > 0
        await collect(bench, timedelta(days=1))
        store.go_on.set()
        await fetching


async def test_pushes_and_fetches_go_on(bench: Bench) -> None:
    history = make_history(1, commits=30)
    repo = bench.repos["demo"] = await bench.gate.repo("demo")
    objects = [PushObject(**item) for item in history.objects()]

    async def push() -> None:
        for one in objects:
            await bench.gate.segments.store(repo.repo_id, [one], CALLER)
        for one in objects:
            await bench.gate.segments.store(repo.repo_id, [one], CALLER)

    async with asyncio.TaskGroup() as tasks:
        pushing = tasks.create_task(push())
        while not pushing.done():
            await join(bench)
            await collect_condemned(bench)
    await bench.gate.push(repo, history.bundle())
    await check_whole(bench, history)
    await collect(bench)
    await join(bench)
    await check_whole(bench, history)
