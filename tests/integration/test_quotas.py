"""Quotas: 429 before anything is stored, exact in one process, and nearly so across replicas."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.packs.uploads import Uploads
from gateway.wire.limits import WireLimits
from leases.database import Database
from leases.errors import OverQuota, QuotaReached
from leases.ids import new_mpack_id
from leases.model import PREFIX, LeaseKind
from leases.policy import LeasePolicy
from leases.quotas import COUNT_ALL, COUNT_REPOS, DUE_OF_ALL, DUE_OF_REPO, Quotas
from leases.usage import read_usage
from tests.factories import History, make_history
from tests.fakes import FakeClock, MemoryStore
from tests.integration.fetching import Bench, bench_on, settings_of
from tests.integration.gateways import LiveGateway, serving, settings_for
from tests.integration.test_fetch_inline import body, fetch_inline
from tests.integration.test_reaper import FILL, LEASES
from tests.integration.test_uploads import SigningStore
from tests.invariants import check_invariants
from tests.leasing import CALLER, QUICK, engine_on, granted, reserved, until

LARGE = bytes(100_000)


def quota(**limits: Any) -> LeasePolicy:
    return LeasePolicy(**limits)


def first_of(history: History) -> str:
    return next(iter(history.commits))


async def rows(database: Database) -> int:
    found = await database.row("SELECT count(*) AS n FROM mpack_leases")
    return int(found["n"])


async def outcomes(*fetches: Awaitable[Any]) -> tuple[int, int]:
    """How many were answered, and how many refused for a quota."""
    found = await asyncio.gather(*fetches, return_exceptions=True)
    refused = [one for one in found if isinstance(one, QuotaReached)]
    answered = [one for one in found if not isinstance(one, BaseException)]
    assert len(refused) + len(answered) == len(found), found
    return len(answered), len(refused)


# Fetches. ----------------------------------------------------------------------------------------


async def test_one_lease_too_many_is_refused_and_leaves_nothing(engine: AsyncEngine) -> None:
    history = make_history(3)
    async with bench_on(engine, settings=settings_of(quota(leases_per_repo_max=2))) as bench:
        repo_id = await bench.pushed(history)
        other_id = await bench.pushed(history, "other")
        for _ in range(2):
            await bench.fetch(repo_id, [history.head.commit_id], share=False)
        puts = len(bench.store.calls_of("put"))
        with pytest.raises(QuotaReached, match="2 open leases at a time; come back in") as refused:
            await bench.fetch(repo_id, [history.head.commit_id], share=False)
        assert 295 < refused.value.fields["retry_after_seconds"] <= 302, "their TTL is 300 s"
        assert len(bench.store.calls_of("put")) == puts
        assert await rows(bench.database) == 2
        await bench.fetch(
            other_id, [history.head.commit_id], share=False
        )  # Another repo's is another one.


async def test_a_share_of_a_pack_costs_nothing(engine: AsyncEngine) -> None:
    history = make_history(3)
    async with bench_on(engine, settings=settings_of(quota(leases_per_repo_max=1))) as bench:
        repo_id = await bench.pushed(history)
        first = await bench.fetch(repo_id, [history.head.commit_id])
        for _ in range(3):
            assert (await bench.fetch(repo_id, [history.head.commit_id]))["mpack_id"] == first[
                "mpack_id"
            ]
        with pytest.raises(QuotaReached):
            await bench.fetch(repo_id, [first_of(history)])


async def test_the_whole_gateway_has_a_limit_too(engine: AsyncEngine) -> None:
    history = make_history(3)
    async with bench_on(engine, settings=settings_of(quota(leases_max=2))) as bench:
        ids = [await bench.pushed(history, slug) for slug in ("one", "two", "three")]
        for repo_id in ids[:2]:
            await bench.fetch(repo_id, [history.head.commit_id])
        with pytest.raises(QuotaReached, match="The gateway may have 2 open leases"):
            await bench.fetch(ids[2], [history.head.commit_id])


@pytest.mark.parametrize("name", ["transient_bytes_per_repo_max", "transient_bytes_max"])
async def test_bytes_are_counted_by_the_plan_and_then_by_the_pack(
    engine: AsyncEngine, name: str
) -> None:
    history = make_history(3)
    async with bench_on(engine) as bench:
        repo_id = await bench.pushed(history)
        size_bytes = (await bench.fetch(repo_id, [history.head.commit_id], share=False))[
            "size_bytes"
        ]
    # One is there, one more has room, and of the third the last byte has not.
    limits = quota(**{name: 3 * size_bytes - 1})
    async with bench_on(engine, store=bench.store, settings=settings_of(limits)) as bench:
        await bench.fetch(repo_id, [history.head.commit_id], share=False)
        with pytest.raises(QuotaReached, match="bytes of packs and uploads at a time"):
            await bench.fetch(repo_id, [history.head.commit_id], share=False)
        assert await rows(bench.database) == 2


async def test_what_could_never_fit_is_too_large(engine: AsyncEngine) -> None:
    """Coming back later would not help."""
    history = make_history(3)
    limits = quota(transient_bytes_per_repo_max=10)
    async with bench_on(engine, settings=settings_of(limits)) as bench:
        repo_id = await bench.pushed(history)
        with pytest.raises(OverQuota, match="this alone would be more"):
            await bench.fetch(repo_id, [history.head.commit_id])
        assert await rows(bench.database) == 0


async def test_there_is_room_again_when_a_lease_has_ended(engine: AsyncEngine) -> None:
    history = make_history(3)
    async with bench_on(engine, settings=settings_of(quota(leases_per_repo_max=1))) as bench:
        repo_id = await bench.pushed(history)
        await bench.fetch(repo_id, [history.head.commit_id], share=False, ttl_seconds=0.3)

        async def fetched() -> bool:
            try:
                await bench.fetch(repo_id, [history.head.commit_id], share=False)
            except QuotaReached:
                return False
            return True

        await until(fetched)


async def test_one_process_is_exact_however_many_ask_at_once(engine: AsyncEngine) -> None:
    history = make_history(3)
    limits = quota(leases_per_repo_max=7)
    async with bench_on(engine, settings=settings_of(limits)) as bench:
        repo_id = await bench.pushed(history)
        fetches = [bench.fetch(repo_id, [history.head.commit_id], share=False) for _ in range(20)]
        assert await outcomes(*fetches) == (7, 13)
        assert await rows(bench.database) == 7


async def test_replicas_pass_a_limit_by_two_each_at_most(engine: AsyncEngine) -> None:
    """And use the room there is."""
    history = make_history(3)
    settings = settings_of(quota(leases_per_repo_max=8))
    async with AsyncExitStack() as opened:
        store = MemoryStore()
        benches = [
            await opened.enter_async_context(bench_on(engine, store=store, settings=settings))
            for _ in range(3)
        ]
        repo_id = await benches[0].pushed(history)
        answered, refused = await outcomes(
            *(
                bench.fetch(repo_id, [history.head.commit_id], share=False)
                for _ in range(10)
                for bench in benches
            )
        )
        assert 8 <= answered <= 8 + 2 * 2
        assert refused == 30 - answered
        assert await rows(benches[0].database) == answered


async def test_without_limits_nothing_is_asked(database: Database) -> None:
    quotas = Quotas(database, LeasePolicy(), FakeClock(), upload_bytes_max=1)
    await database.close()
    await quotas.check("repo-1")
    async with quotas.room("repo-1", {"a": 1, "b": 2}) as ids:
        assert list(ids) == ["a", "b"]


# What is counted, with a clock that stands still. ------------------------------------------------


async def test_what_is_being_built_counts_once(database: Database, store: MemoryStore) -> None:
    """Its row is there before its size is, and may be counted while it is built."""
    policy = replace(QUICK, leases_per_repo_max=2, transient_bytes_per_repo_max=100)
    clock = FakeClock()
    quotas = Quotas(database, policy, clock, upload_bytes_max=1)
    async with engine_on(database, store, policy) as leasing:
        mpack_id = new_mpack_id()
        async with quotas.room("repo-1", {mpack_id: 60}):
            await leasing.lessor.reserve(
                mpack_id=mpack_id, kind=LeaseKind.PACK, repo_id="repo-1", caller=CALLER
            )
            clock.advance(2)
            with pytest.raises(QuotaReached):
                await quotas.room("repo-1", {"b": 41}).__aenter__()
            async with quotas.room("repo-1", {"b": 40}):
                clock.advance(2)
                with pytest.raises(QuotaReached, match="2 open leases"):
                    await quotas.check("repo-1")
            # It was given up without a row, and is forgotten with the next count.
            clock.advance(2)
            async with quotas.room("repo-1", {"c": 40}):
                pass
        await leasing.lessor.revoke(mpack_id, reason="a test", caller=CALLER)
    await check_invariants(database, store)


async def test_what_another_replica_builds_counts_by_its_plan(engine: AsyncEngine) -> None:
    """Its row tells it to all, until it tells the size of what was stored."""
    history = make_history(3)
    seen: list[Any] = []
    async with bench_on(engine) as bench:
        repo_id = await bench.pushed(history)

        class Looking(MemoryStore):
            """Looks, while it is given a pack, at what another replica would count."""

            async def put(self, key: str, data: Any) -> None:
                if key.startswith(PREFIX):
                    seen.extend(await bench.database.fetch(COUNT_REPOS, [], [repo_id]))
                await super().put(key, data)

        store = Looking()
        store.blobs = bench.store.blobs
        async with bench_on(engine, store=store) as other:
            answer = await other.fetch(repo_id, [history.head.commit_id])
        (row,) = await bench.database.fetch(COUNT_REPOS, [], [repo_id])
    assert [one["leases"] for one in seen] == [1]
    # The spliced pack is as large as its plan; compressed it would be smaller.
    assert seen[0]["size_bytes"] >= answer["size_bytes"] == row["size_bytes"]


async def test_a_count_is_good_for_a_second(database: Database, store: MemoryStore) -> None:
    policy = replace(QUICK, leases_max=2)
    clock = FakeClock()
    quotas = Quotas(database, policy, clock, upload_bytes_max=1)
    async with engine_on(database, store, policy) as leasing:
        await quotas.check("repo-1")
        leases = [await granted(leasing, ttl_seconds=60) for _ in range(2)]
        await quotas.check("repo-1")  # Another replica's, not counted yet.
        clock.advance(1)
        with pytest.raises(QuotaReached, match="The gateway may have 2") as refused:
            await quotas.check("repo-1")
        left = min(one.delete_at for one in leases) - leasing.database_clock.now()
        told = timedelta(seconds=refused.value.fields["retry_after_seconds"])
        assert timedelta() < told - left < timedelta(seconds=3)


async def test_an_upload_counts_as_the_largest_there_may_be(
    database: Database, store: MemoryStore
) -> None:
    policy = replace(QUICK, transient_bytes_per_repo_max=250)
    quotas = Quotas(database, policy, FakeClock(), upload_bytes_max=100)
    async with engine_on(database, store, policy) as leasing:
        for _ in range(2):
            await reserved(leasing, kind=LeaseKind.UPLOAD)
        async with quotas.room("repo-1", {"a": 50}):
            with pytest.raises(QuotaReached):
                await quotas.check("repo-1")


async def test_uploads_get_the_room_there_is(database: Database) -> None:
    """The others come inline; only where there is room for none is it an error."""
    store = SigningStore()
    policy = replace(QUICK, leases_per_repo_max=5, transient_bytes_max=300)
    uploads = Uploads(store, policy, upload_bytes_max=100)
    async with engine_on(database, store, policy, upload_bytes_max=100) as leasing:
        ids = [f"{number:064x}" for number in range(4)]
        found = await uploads.presign(leasing, "repo-1", ids, caller=CALLER)
        assert (list(found.urls), list(found.inline)) == (ids[:3], ids[3:])
        with pytest.raises(QuotaReached, match="300 bytes"):
            await uploads.presign(leasing, "repo-2", ids, caller=CALLER)
    assert await rows(database) == 3


async def reserved_by_another(bench: Bench, repo_id: str) -> None:
    await bench.gateway.leases.lessor.reserve(
        mpack_id=new_mpack_id(), kind=LeaseKind.PACK, repo_id=repo_id, caller=CALLER
    )


# Over HTTP. --------------------------------------------------------------------------------------


def with_large_object() -> History:
    history = make_history(2)
    history.commit({"large": history.content(LARGE)}, parents=[history.head])
    return history


async def presigned(gateway: LiveGateway, ids: list[str], direction: str, token: str) -> Any:
    asked = {"object_ids": ids, "direction": direction}
    return await gateway.call("POST", "/o/r/presign", asked, token=token)


async def test_every_way_to_a_lease_answers_429(database_url: str, tmp_path: Path) -> None:
    settings = settings_for(
        database_url, tmp_path / "data", lease=LeasePolicy(leases_per_repo_max=1)
    )
    history = with_large_object()
    (large,) = (key for key, value in history.contents.items() if value == LARGE)
    async with serving(settings) as gateway:
        token = await gateway.token("push")
        assert (await gateway.push("o/r", history, token=token)).status == 200
        asked = {"want": [history.head.commit_id], "have": []}
        first = await gateway.call("POST", "/o/r/fetch/mpack", asked, token=token)
        assert first.status == 200
        older = {"want": [first_of(history)], "have": []}
        for answer in (
            await gateway.call("POST", "/o/r/fetch/mpack", older, token=token),
            await gateway.call("POST", "/o/r/fetch", older | {"delivery": "url"}, token=token),
            await presigned(gateway, [large], "get", token),
            await presigned(gateway, ["b" * 64], "put", token),
        ):
            assert (answer.status, answer.body["code"]) == (429, "quota_reached")
            assert 250 < int(answer.headers["retry-after"]) <= 302
            assert "may have 1 open leases at a time; come back in" in answer.body["message"]
        assert (await gateway.call("POST", "/o/r/fetch", asked, token=token)).status == 200
        text = gateway.service.metrics.text().decode()
        assert 'mpack_quota_refusals_total{quota="leases_per_repo"} 4.0' in text
        assert await rows(gateway.service.database) == 1


@pytest.mark.parametrize("limits", [{"leases_per_repo_max": 1}, {"transient_bytes_max": 10}])
async def test_an_inline_pack_without_room_is_answered_unstored(
    engine: AsyncEngine, limits: dict[str, int]
) -> None:
    """It would be kept for those who come later; who asks now needs no room."""
    history = make_history(3)
    async with bench_on(engine, settings=settings_of(quota(**limits))) as bench:
        repo_id = await bench.pushed(history)
        await reserved_by_another(bench, repo_id)
        puts = len(bench.store.calls_of("put"))
        inline = [await fetch_inline(bench, repo_id, [history.head.commit_id]) for _ in range(3)]
        packs = [await body(answer) for answer in inline]
        assert packs[0]["commits"]
        assert packs == 3 * packs[:1]
        assert [answer.mpack_id for answer in inline] == 3 * [None]
        assert len(bench.store.calls_of("put")) == puts
        assert await rows(bench.database) == 1
        assert bench.gateway.packs.budget.bytes_held == 0


async def test_copies_are_made_for_all_that_were_asked_for_or_none(
    database_url: str, tmp_path: Path
) -> None:
    limit = 1024 * 1024
    settings = settings_for(
        database_url,
        tmp_path / "data",
        lease=LeasePolicy(transient_bytes_per_repo_max=limit),
        wire=WireLimits(upload_bytes_max=limit),
    )
    history = make_history(1)
    contents = [bytes([number]) * (300 * 1024) for number in range(5)]
    history.commit(
        {str(n): history.content(one) for n, one in enumerate(contents)}, parents=[history.head]
    )
    ids = [key for key, value in history.contents.items() if value in contents]
    async with serving(settings) as gateway:
        token = await gateway.token("push")
        assert (await gateway.push("o/r", history, token=token)).status == 200
        assert (await presigned(gateway, ids, "get", token)).status == 413
        assert (await presigned(gateway, ids[:2], "get", token)).status == 200
        assert (await presigned(gateway, ids[2:4], "get", token)).status == 429
        assert await rows(gateway.service.database) == 2
        assert (await presigned(gateway, ids[2:3], "get", token)).status == 200


# What it costs. ----------------------------------------------------------------------------------

_OTHERS = """
UPDATE mpack_leases SET repo_id = 'r' || n % 1000, size_bytes = 7
FROM (SELECT mpack_id, row_number() OVER (ORDER BY mpack_id) / 10 AS n FROM mpack_leases) AS rows
WHERE rows.mpack_id = mpack_leases.mpack_id AND n % 2 = 0
"""


@pytest.mark.parametrize(
    "sql, args, index",
    [
        (COUNT_REPOS, ([], ["r8", "r9"]), "ix_mpack_leases_open"),
        (COUNT_ALL, ([],), "ix_mpack_leases_open"),
        (DUE_OF_ALL, (1, 200), "ix_mpack_leases_due"),
        (DUE_OF_REPO, (1, 200, "r"), "ix_mpack_leases_open"),
    ],
    ids=["of repos", "of all", "falling due", "falling due of a repo"],
)
async def test_counting_reads_open_leases_alone(
    database: Database, sql: str, args: tuple[Any, ...], index: str
) -> None:
    """A repo's count reads that repo's; closed ones, of which there may be millions, never."""
    await database.execute(FILL, LEASES)
    await database.execute(_OTHERS)
    await database.execute("VACUUM ANALYZE mpack_leases")
    found = await database.fetch(f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) {sql}", *args)
    plan = "\n".join(row[0] for row in found)
    assert index in plan, plan
    assert "Seq Scan on mpack_leases" not in plan, plan
    assert "Sort Key" not in plan, plan


async def test_stats_show_what_is_used_and_by_whom(database: Database, store: MemoryStore) -> None:
    policy = replace(QUICK, leases_per_repo_max=9, transient_bytes_max=500)
    async with engine_on(database, store, policy, upload_bytes_max=100) as leasing:
        await reserved(leasing, kind=LeaseKind.UPLOAD)
        lease = await granted(leasing, ttl_seconds=60)
        await leasing.lessor.reserve(
            mpack_id=new_mpack_id(), kind=LeaseKind.PACK, repo_id="repo-2", caller=CALLER
        )
        assert await read_usage(database, LeasePolicy(), upload_bytes_max=100) == []
        per_repo, in_all = await read_usage(database, policy, upload_bytes_max=100)
    assert per_repo.in_words() == "2 of 9, the most, by repo-1"
    assert (in_all.quota, in_all.used) == ("transient_bytes", 100 + (lease.size_bytes or 0))
