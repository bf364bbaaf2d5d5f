"""One build for all who want the same pack: in a process, across replicas, through failures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.errors import BuildFailed, BuildsBusy, IncompleteRepo, SpoolFull, UnknownCommit
from gateway.packs.transaction import Reader, reading
from leases.errors import StoreUnavailable
from leases.lessor import Caller
from leases.policy import LeasePolicy
from tests.factories import make_history
from tests.fakes import MemoryStore
from tests.integration.fetching import CALLER, Bench, bench_on, settings_of


async def until(true: Callable[[], bool]) -> None:
    """Let others run until something is so."""
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110  there is no event for it outside of tests
            await asyncio.sleep(0.01)


class SlowStore(MemoryStore):
    """Holds every put of a pack until `open` is set, then fails it if told so."""

    def __init__(self) -> None:
        super().__init__()
        self.open = asyncio.Event()
        self.reached = asyncio.Event()
        self.failure: Exception | None = None

    async def put(self, key: str, data: bytes | AsyncIterator[bytes]) -> None:
        if key.startswith("transient/") and not key.endswith(".owner"):
            self.reached.set()
            await self.open.wait()
            if self.failure is not None:
                raise self.failure
        await super().put(key, data)

    def puts(self) -> list[str]:
        return [call.key for call in self.calls_of("put") if "transient/" in call.key]


@pytest.fixture
async def bench(engine: AsyncEngine) -> AsyncIterator[Bench]:
    async with bench_on(engine) as bench:
        yield bench


@asynccontextmanager
async def slow_benches(
    engine: AsyncEngine, count: int = 1, **pack: Any
) -> AsyncIterator[tuple[SlowStore, str, str, list[Bench]]]:
    """Replicas on one slow store; a repo, and its head."""
    store = SlowStore()
    settings = settings_of(**pack)
    async with bench_on(engine, store=store, settings=settings) as first:
        history = make_history(7, commits=6)
        repo_id = await first.pushed(history)
        if count == 1:
            yield store, repo_id, history.head.commit_id, [first]
            return
        async with bench_on(engine, store=store, settings=settings) as second:
            yield store, repo_id, history.head.commit_id, [first, second]


async def slots(bench: Bench) -> list[Any]:
    return await bench.database.fetch("SELECT * FROM pack_slots")


async def renewals(bench: Bench) -> int:
    row = await bench.database.row("SELECT count(*) FROM events WHERE type = 'lease.renewed'")
    return int(row[0])


async def test_the_next_caller_shares_the_pack(bench: Bench) -> None:
    history = make_history(7, commits=6)
    repo_id = await bench.pushed(history)
    first = await bench.fetch(repo_id, [history.head.commit_id])
    second = await bench.fetch(repo_id, [history.head.commit_id], ["f" * 64])
    assert second["mpack_id"] == first["mpack_id"]
    assert (first["shared"], second["shared"]) == (False, True)
    assert second["counts"] == first["counts"]
    assert second["sha256"] == first["sha256"]
    (slot,) = await slots(bench)
    assert slot["published"]


async def test_what_the_caller_is_does_not_matter_but_what_it_lacks_does(bench: Bench) -> None:
    """Haves below the common commits add nothing; another repo's equal history is another pack."""
    history = make_history(7, commits=8, merges=False)
    ids = list(history.commits)
    repo_id = await bench.pushed(history)
    first = await bench.fetch(repo_id, [ids[-1]], [ids[4]])
    same = await bench.fetch(repo_id, [ids[-1], ids[-2]], ids[:5])
    assert same["mpack_id"] == first["mpack_id"]
    other = await bench.fetch(repo_id, [ids[-1]], [ids[5]])
    elsewhere = await bench.fetch(await bench.pushed(history, "twin"), [ids[-1]], [ids[4]])
    assert len({one["mpack_id"] for one in (first, other, elsewhere)}) == 3


@pytest.mark.parametrize("options", [{"share": False}, {"ttl_seconds": 29.9}], ids=["no", "short"])
async def test_some_packs_are_nobody_elses(bench: Bench, options: dict[str, Any]) -> None:
    history = make_history(7, commits=3)
    repo_id = await bench.pushed(history)
    ids = {
        (await bench.fetch(repo_id, [history.head.commit_id], **options))["mpack_id"]
        for _ in range(2)
    }
    assert len(ids) == 2
    assert await slots(bench) == []


async def test_a_crowd_that_needs_more_life_renews_a_pack_once(bench: Bench) -> None:
    """Each appended a renewal of its own against the others', until most of them gave up."""
    history = make_history(7, commits=3)
    repo_id = await bench.pushed(history)
    want = [history.head.commit_id]
    first = await bench.fetch(repo_id, want, ttl_seconds=100)
    answers = await asyncio.gather(
        *(bench.fetch(repo_id, want, ttl_seconds=200) for _ in range(32))
    )
    assert {answer["mpack_id"] for answer in answers} == {first["mpack_id"]}
    assert await renewals(bench) == 1


async def test_a_hot_pack_is_renewed_when_it_would_end_too_early(bench: Bench) -> None:
    history = make_history(7, commits=3)
    repo_id = await bench.pushed(history)
    want = [history.head.commit_id]
    first = await bench.fetch(repo_id, want, ttl_seconds=100)
    longer = await bench.fetch(repo_id, want, ttl_seconds=200)
    assert longer["mpack_id"] == first["mpack_id"]
    assert await renewals(bench) == 1
    for _ in range(3):
        await bench.fetch(repo_id, want, ttl_seconds=200)
    assert await renewals(bench) == 1, "renewed once to 1.25 times the TTL, not at every hit"
    row = await bench.database.row("SELECT * FROM mpack_leases")
    life = row["expires_at"] - row["activated_at"]
    assert timedelta(seconds=250) <= life < timedelta(seconds=260)
    assert longer["expires_in"] is not None
    assert 199 < longer["expires_in"] <= 200


async def test_a_pack_near_its_end_is_left_to_it(bench: Bench) -> None:
    """30 s of life are less than the guard of 5 % of an hour: too late to renew."""
    history = make_history(7, commits=3)
    repo_id = await bench.pushed(history)
    want = [history.head.commit_id]
    short = await bench.fetch(repo_id, want, ttl_seconds=30)
    long = await bench.fetch(repo_id, want, ttl_seconds=3600)
    assert long["mpack_id"] != short["mpack_id"]
    again = await bench.fetch(repo_id, want, ttl_seconds=30)
    assert again["mpack_id"] == long["mpack_id"]


async def test_no_pack_is_renewed_beyond_the_longest_life(engine: AsyncEngine) -> None:
    policy = LeasePolicy(lease_life_max_seconds=400)
    async with bench_on(engine, settings=settings_of(policy)) as bench:
        history = make_history(7, commits=3)
        repo_id = await bench.pushed(history)
        want = [history.head.commit_id]
        first = await bench.fetch(repo_id, want, ttl_seconds=300)
        longest = await bench.fetch(repo_id, want, ttl_seconds=400)
        assert longest["mpack_id"] != first["mpack_id"]


async def test_a_revoked_pack_is_not_shared(bench: Bench) -> None:
    history = make_history(7, commits=3)
    repo_id = await bench.pushed(history)
    want = [history.head.commit_id]
    first = await bench.fetch(repo_id, want)
    assert first["mpack_id"] is not None
    await bench.gateway.leases.lessor.revoke(first["mpack_id"], reason="test", caller=CALLER)
    second = await bench.fetch(repo_id, want)
    assert second["mpack_id"] != first["mpack_id"]


async def test_callers_of_one_process_share_one_build(engine: AsyncEngine) -> None:
    async with slow_benches(engine) as (store, repo_id, head, (bench,)):
        async with asyncio.TaskGroup() as tasks:
            answers = [
                tasks.create_task(bench.fetch(repo_id, [head], ttl_seconds=100 + number))
                for number in range(8)
            ]
            await store.reached.wait()
            store.open.set()
        assert len({one.result()["mpack_id"] for one in answers}) == 1
        assert len(store.puts()) == 1
        lefts = [one.result()["expires_in"] for one in answers]
        assert all(
            left is not None and 99 + number - 2 < left <= 100 + number
            for number, left in enumerate(lefts)
        )


async def test_replicas_share_one_build(engine: AsyncEngine) -> None:
    async with slow_benches(engine, 2) as (store, repo_id, head, benches):
        async with asyncio.TaskGroup() as tasks:
            answers = [tasks.create_task(one.fetch(repo_id, [head])) for one in benches * 3]
            await store.reached.wait()
            store.open.set()
        results = [one.result() for one in answers]
        assert len({one["mpack_id"] for one in results}) == 1
        assert len(store.puts()) == 1
        assert len({tuple(one["counts"].items()) for one in results}) == 1


async def test_who_waited_for_another_replica_needs_no_renewal(engine: AsyncEngine) -> None:
    """His TTL counts from the activation, as that of those who waited beside the builder."""
    async with slow_benches(engine, 2) as (store, repo_id, head, (first, second)):
        async with asyncio.TaskGroup() as tasks:
            answers = [tasks.create_task(first.fetch(repo_id, [head]))]
            await store.reached.wait()
            answers += [tasks.create_task(second.fetch(repo_id, [head])) for _ in range(3)]
            await until_members(second, 3)
            await until(lambda: second.gateway.packs.sharing.slots.watched() == 1)
            store.open.set()
        assert len({one.result()["mpack_id"] for one in answers}) == 1
        assert {one.result()["expires_at"] for one in answers} == {
            answers[0].result()["expires_at"]
        }
        assert await renewals(first) == 0


@pytest.mark.parametrize("have", [[], ["f" * 64]], ids=["clones", "fetches"])
async def test_a_crowd_walks_the_history_at_most_twice(
    engine: AsyncEngine, have: list[str]
) -> None:
    async with slow_benches(engine) as (store, repo_id, head, (bench,)):
        walks = 0

        def counted() -> AbstractAsyncContextManager[Reader]:
            nonlocal walks
            walks += 1
            return reading(bench.database)

        async with asyncio.TaskGroup() as tasks:
            answers = [
                tasks.create_task(
                    bench.gateway.packs.fetch_mpack(
                        counted, repo_id, want=[head], have=have, caller=CALLER
                    )
                )
                for _ in range(16)
            ]
            await until_members(bench, 16)
            store.open.set()
        assert len({one.result().mpack_id for one in answers}) == 1
        planning = 1
        assert walks <= planning + (2 if have else 1)


async def test_wants_that_were_just_seen_are_not_looked_up_again(bench: Bench) -> None:
    """A clone wants the heads, which its own request has read a moment ago."""
    history = make_history(3)
    repo_id = await bench.pushed(history)
    older, head = list(history.commits)[-2:]
    lent = 0

    def counted() -> AbstractAsyncContextManager[Reader]:
        nonlocal lent
        lent += 1
        return reading(bench.database)

    async def fetch(want: str, seen: set[str]) -> str | None:
        nonlocal lent
        lent = 0
        answer = await bench.gateway.packs.fetch_mpack(
            counted, repo_id, want=[want], have=[], seen=seen, caller=CALLER
        )
        return answer.mpack_id

    pack_id = await fetch(head, set())
    assert (await fetch(head, {head}), lent) == (pack_id, 0)
    assert (await fetch(head, {older}), lent) == (pack_id, 1)
    with pytest.raises(UnknownCommit):
        await fetch("e" * 64, {head})


async def test_a_replica_that_was_told_nothing_counts_by_itself(engine: AsyncEngine) -> None:
    async with slow_benches(engine) as (store, repo_id, head, (bench,)):
        store.open.set()
        first = await bench.fetch(repo_id, [head])
        async with bench_on(engine, store=store) as other:
            second = await other.fetch(repo_id, [head])
        assert second["mpack_id"] == first["mpack_id"]
        assert second["counts"] == first["counts"]


async def test_everybody_who_waits_gets_the_builders_error(engine: AsyncEngine) -> None:
    async with slow_benches(engine, 2, slot_poll_seconds=30, slot_limit_seconds=120) as (
        store,
        repo_id,
        head,
        benches,
    ):
        store.failure = OSError("the bucket is on fire")
        waiting = [asyncio.create_task(one.fetch(repo_id, [head])) for one in benches * 2]
        await store.reached.wait()
        await until_waiting(benches)
        store.open.set()
        failures = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(one) for one in failures] == [StoreUnavailable] * 4
        assert "fire" not in "".join(map(str, failures)), "a store may repeat secrets"
        assert await slots(benches[0]) == []


async def until_waiting(benches: list[Bench]) -> None:
    """Until every replica's flight either builds or watches the slot of the one that does."""
    await until(lambda: any(one.gateway.packs.sharing.slots.watched() for one in benches))


async def test_a_caller_who_hangs_up_leaves_the_build_to_the_others(engine: AsyncEngine) -> None:
    async with slow_benches(engine) as (store, repo_id, head, (bench,)):
        first = asyncio.create_task(bench.fetch(repo_id, [head]))
        await store.reached.wait()
        second = asyncio.create_task(bench.fetch(repo_id, [head]))
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        store.open.set()
        assert (await second)["mpack_url"] is not None
        assert len(store.puts()) == 1


class HeldReader:
    """Lends a connection; the second loan (the plan's) waits until it is let go."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.loans = 0
        self.reading = asyncio.Event()
        self.let_go = asyncio.Event()

    def __call__(self) -> AbstractAsyncContextManager[Reader]:
        return self._lend()

    @asynccontextmanager
    async def _lend(self) -> AsyncIterator[Reader]:
        self.loans += 1
        async with reading(self._bench.database) as connection:
            if self.loans == 2:
                self.reading.set()
                await self.let_go.wait()
            yield connection


async def test_when_the_one_who_reads_hangs_up_another_reads(engine: AsyncEngine) -> None:
    async with slow_benches(engine) as (store, repo_id, head, (bench,)):
        store.open.set()
        held = HeldReader(bench)
        first = asyncio.create_task(
            bench.gateway.packs.fetch_mpack(held, repo_id, want=[head], have=[], caller=CALLER)
        )
        await held.reading.wait()
        second = asyncio.create_task(bench.fetch(repo_id, [head]))
        await until_members(bench, 2)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert (await second)["mpack_url"] is not None
        assert len(store.puts()) == 1
        assert bench.gateway.packs.budget.bytes_held == 0


async def until_members(bench: Bench, count: int) -> None:
    sharing = bench.gateway.packs.sharing
    await until(lambda: sum(flight.members for flight in sharing.flights()) >= count)


async def test_when_everybody_hangs_up_the_slot_is_free(engine: AsyncEngine) -> None:
    async with slow_benches(engine) as (store, repo_id, head, (bench,)):
        held = HeldReader(bench)
        alone = asyncio.create_task(
            bench.gateway.packs.fetch_mpack(held, repo_id, want=[head], have=[], caller=CALLER)
        )
        await held.reading.wait()
        alone.cancel()
        await asyncio.gather(alone, return_exceptions=True)
        store.open.set()
        assert (await bench.fetch(repo_id, [head]))["mpack_url"] is not None
        assert len(store.puts()) == 1


async def take_slot(bench: Bench, built_by: str, *, seconds: float) -> str:
    """Somebody else's slot on the pack that was just published: being built, for so long."""
    rows = await bench.database.fetch(
        "UPDATE pack_slots SET mpack_id = 'of-another', built_by = $1, published = false,"
        " build_until = clock_timestamp() + $2 RETURNING cache_key",
        built_by,
        timedelta(seconds=seconds),
    )
    return str(rows[0]["cache_key"])


@pytest.mark.parametrize(
    "built_by, seconds",
    [("live.00000000", 3600.0), ("free.00000000", -1.0), ("free.00000000", 0.5)],
    ids=["its process is gone", "its time is over", "its time ends"],
)
async def test_a_dead_builders_slot_is_taken_over(
    bench: Bench, built_by: str, seconds: float
) -> None:
    """Always with a new id: the dead builder's put may still land."""
    history = make_history(7, commits=3)
    repo_id = await bench.pushed(history)
    first = await bench.fetch(repo_id, [history.head.commit_id])
    await take_slot(bench, built_by, seconds=seconds)
    async with asyncio.timeout(5):
        second = await bench.fetch(repo_id, [history.head.commit_id])
    assert second["mpack_id"] not in (first["mpack_id"], "of-another")
    (slot,) = await slots(bench)
    assert (slot["mpack_id"], slot["published"]) == (second["mpack_id"], True)


async def test_waiting_for_a_builder_has_an_end(engine: AsyncEngine) -> None:
    async with bench_on(engine, settings=settings_of(slot_wait_seconds=0.3)) as bench:
        history = make_history(7, commits=3)
        repo_id = await bench.pushed(history)
        await bench.fetch(repo_id, [history.head.commit_id])
        await take_slot(bench, "free.00000000", seconds=3600)
        with pytest.raises(BuildsBusy):
            await bench.fetch(repo_id, [history.head.commit_id])


async def test_the_builder_keeps_its_slot(engine: AsyncEngine) -> None:
    """A build that takes longer than the slot's limit is not taken for dead."""
    pace = {"slot_beat_seconds": 0.05, "slot_limit_seconds": 0.4, "slot_poll_seconds": 0.02}
    async with slow_benches(engine, 2, **pace) as (store, repo_id, head, benches):
        # Without their locks, so that the time limit alone decides.
        for bench in benches:
            bench.gateway.leases.instance.is_live = False
        waiting = [asyncio.create_task(one.fetch(repo_id, [head])) for one in benches]
        await store.reached.wait()
        done, _ = await asyncio.wait(waiting, timeout=1.2)
        assert not done
        store.open.set()
        assert len({one["mpack_id"] for one in await asyncio.gather(*waiting)}) == 1


async def test_a_lease_that_ends_during_the_put_is_cleaned_up(engine: AsyncEngine) -> None:
    """The activation is refused: the builder deletes its own key, and answers 503."""

    class Revoking(SlowStore):
        bench: Bench

        async def put(self, key: str, data: bytes | AsyncIterator[bytes]) -> None:
            if key.startswith("transient/") and not key.endswith(".owner"):
                await self.bench.gateway.leases.lessor.revoke(
                    key.rpartition("/")[2], reason="test", caller=Caller(actor="test")
                )
            await super().put(key, data)

    store = Revoking()
    store.open.set()
    async with bench_on(engine, store=store) as bench:
        store.bench = bench
        history = make_history(7, commits=3)
        repo_id = await bench.pushed(history)
        with pytest.raises(BuildFailed):
            await bench.fetch(repo_id, [history.head.commit_id])
        assert bench.transient() == []
        assert store.puts()
        assert len(store.calls_of("delete", store.puts()[-1])) >= 1


async def test_a_put_ends_before_its_own_cleanup(engine: AsyncEngine) -> None:
    policy = LeasePolicy(upload_limit_seconds=1.0, upload_margin_seconds=0.7)
    store = SlowStore()
    async with bench_on(engine, store=store, settings=settings_of(policy)) as bench:
        history = make_history(7, commits=3)
        repo_id = await bench.pushed(history)
        with pytest.raises(StoreUnavailable):
            await bench.fetch(repo_id, [history.head.commit_id])
        row = await bench.database.row(
            "SELECT delete_at - clock_timestamp() AS rest FROM mpack_leases"
        )
        assert row["rest"] > timedelta(seconds=0.3)


async def test_a_build_that_fails_gives_its_reservation_back(bench: Bench) -> None:
    history = make_history(7, commits=3)
    repo_id = await bench.pushed(history)
    for key in [one for one in bench.store.blobs if one.startswith("segments/")]:
        del bench.store.blobs[key]
    with pytest.raises(IncompleteRepo):
        await bench.fetch(repo_id, [history.head.commit_id])
    row = await bench.database.row("SELECT revoked_at FROM mpack_leases")
    assert row["revoked_at"] is not None
    assert await slots(bench) == []


async def test_no_room_to_build_is_answered_and_leaves_nothing(engine: AsyncEngine) -> None:
    room: dict[str, Any] = {"spool_bytes_max": 2000, "spool_memory_bytes": 1000}
    async with bench_on(engine, settings=settings_of(**room)) as bench:
        history = make_history(7, commits=6)
        repo_id = await bench.pushed(history)
        with pytest.raises(SpoolFull):
            await bench.fetch(repo_id, [history.head.commit_id])
        assert bench.gateway.packs.budget.bytes_held == 0
        assert bench.transient() == []


async def test_old_slots_are_forgotten(bench: Bench) -> None:
    history = make_history(7, commits=3)
    repo_id = await bench.pushed(history)
    await bench.fetch(repo_id, [history.head.commit_id])
    assert await bench.gateway.packs.sharing.slots.forget_old(3600) == 0
    assert await bench.gateway.packs.sharing.slots.forget_old(0) == 1
    assert await slots(bench) == []
