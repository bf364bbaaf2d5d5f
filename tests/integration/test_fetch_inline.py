"""A pack as the body of an answer: from the slot that everybody shares, or built for one alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.requests import ClientDisconnect

from gateway.errors import TooLarge
from gateway.packs.inline import InlinePack
from gateway.routes.fetch import PackResponse
from leases.errors import StoreUnavailable
from tests.factories import History, make_history
from tests.fakes import MemoryStore
from tests.integration.fetching import CALLER, Bench, bench_on, lacking, settings_of, unpacked

PAIRS = {"branch_heads": {"main": "a" * 64}}


@pytest.fixture
async def bench(engine: AsyncEngine) -> AsyncIterator[Bench]:
    async with bench_on(engine) as bench:
        yield bench


async def fetch_inline(
    bench: Bench, repo_id: str, want: list[str], have: list[str] | None = None, **options: Any
) -> InlinePack:
    return await bench.gateway.packs.fetch_inline(
        bench.open_reader(),
        repo_id,
        want=want,
        have=have or [],
        pairs=PAIRS,
        caller=CALLER,
        **options,
    )


async def body(pack: InlinePack) -> dict[str, Any]:
    data = b"".join([chunk async for chunk in pack.chunks])
    await pack.close()
    assert len(data) == pack.size_bytes
    return unpacked(data)


async def test_an_inline_answer_is_the_shared_pack_and_the_heads(bench: Bench) -> None:
    history = make_history(7, commits=6)
    repo_id = await bench.pushed(history)
    head = history.head.commit_id
    answer = await bench.fetch(repo_id, [head])
    inline = await fetch_inline(bench, repo_id, [head])
    assert inline.mpack_id == answer["mpack_id"]
    assert await body(inline) == bench.pack(answer) | PAIRS


async def test_who_is_up_to_date_costs_nothing(bench: Bench) -> None:
    history = make_history(7, commits=6)
    repo_id = await bench.pushed(history)
    bench.store.calls.clear()
    head = history.head.commit_id
    found = await body(await fetch_inline(bench, repo_id, [head], [head]))
    assert found == {"version": 1, "commits": [], "snapshots": [], "objects": []} | PAIRS
    assert bench.store.calls == []


@pytest.mark.parametrize("share", [True, False])
async def test_what_is_too_large_is_refused_before_anything_is_stored(
    engine: AsyncEngine, share: bool
) -> None:
    async with bench_on(engine, settings=settings_of(inline_bytes_max=3000)) as bench:
        history = make_history(7, commits=9)
        repo_id = await bench.pushed(history)
        head = history.head.commit_id
        with pytest.raises(TooLarge) as refused:
            await fetch_inline(bench, repo_id, [head], share=share)
        assert "fetch/mpack" in refused.value.message
        assert bench.transient() == []
        assert bench.gateway.packs.budget.bytes_held == 0
        answer = await bench.fetch(repo_id, [head])
        assert answer["size_bytes"] > 3000
        with pytest.raises(TooLarge):
            await fetch_inline(bench, repo_id, [head], share=share)


async def test_what_one_asks_for_is_stored_for_nobody(bench: Bench) -> None:
    """No PUT, no lease, no slot; and the same bytes as the pack that would be shared."""
    history = make_history(7, commits=6)
    repo_id = await bench.pushed(history)
    head = history.head.commit_id
    bench.store.calls.clear()
    inline = await fetch_inline(bench, repo_id, [head])
    assert inline.mpack_id is None
    found = await body(inline)
    assert bench.store.calls_of("put") == []
    for table in ("mpack_leases", "pack_slots"):
        assert await bench.database.fetch(f"SELECT * FROM {table}") == []
    assert bench.gateway.packs.budget.bytes_held == 0
    assert found == bench.pack(await bench.fetch(repo_id, [head])) | PAIRS


async def test_what_is_asked_for_again_is_stored_for_the_next(bench: Bench) -> None:
    history = make_history(7, commits=6)
    repo_id = await bench.pushed(history)
    answers = [await fetch_inline(bench, repo_id, [history.head.commit_id]) for _ in range(4)]
    first, *others = [answer.mpack_id for answer in answers]
    assert first is None
    assert len(set(others)) == 1
    assert others[0] is not None
    assert len(bench.transient()) == 1
    packs = [await body(answer) for answer in answers]
    assert all(pack == packs[0] for pack in packs)


async def test_a_crowd_that_comes_at_once_is_one_stored_build(bench: Bench) -> None:
    history = make_history(7, commits=6)
    repo_id = await bench.pushed(history)
    want = [history.head.commit_id]
    answers = await asyncio.gather(*(fetch_inline(bench, repo_id, want) for _ in range(16)))
    packs = [await body(answer) for answer in answers]
    assert all(pack == packs[0] for pack in packs)
    alone = [answer for answer in answers if answer.mpack_id is None]
    assert len(alone) <= 1
    assert len(bench.transient()) == 1


async def test_a_pack_nobody_may_share_is_never_stored(bench: Bench) -> None:
    history = make_history(7, commits=6)
    repo_id = await bench.pushed(history)
    want = [history.head.commit_id]
    for _ in range(3):
        inline = await fetch_inline(bench, repo_id, want, share=False)
        assert inline.mpack_id is None
        await body(inline)
    assert bench.transient() == []


async def test_above_the_budget_only_what_was_promised_is_kept(engine: AsyncEngine) -> None:
    """Inline packs are not stored, renewals end with the promise; URLs are answered and shared."""
    settings = settings_of(transient_bytes_budget=1)
    async with bench_on(engine, settings=settings) as bench:
        history = make_history(7, commits=6)
        repo_id = await bench.pushed(history)
        first, head = next(iter(history.commits)), history.head.commit_id
        promised = await bench.fetch(repo_id, [head], ttl_seconds=100)
        await bench.gateway.packs.kept.look()
        for _ in range(3):
            inline = await fetch_inline(bench, repo_id, [first])
            assert inline.mpack_id is None
            await body(inline)
        longer = await bench.fetch(repo_id, [head], ttl_seconds=200)
        assert longer["mpack_id"] == promised["mpack_id"]
        row = await bench.database.row("SELECT * FROM mpack_leases")
        life = row["expires_at"] - row["activated_at"]
        assert timedelta(seconds=200) <= life < timedelta(seconds=215)
        shared = await fetch_inline(bench, repo_id, [head])
        assert shared.mpack_id == promised["mpack_id"]
        other = await bench.fetch(repo_id, [first], ttl_seconds=100)
        assert other["mpack_url"] is not None
        assert len(bench.transient()) == 2


async def test_a_budget_is_looked_at_by_itself(engine: AsyncEngine) -> None:
    settings = settings_of(transient_bytes_budget=1000)
    async with bench_on(engine, settings=settings) as bench:
        history = make_history(7, commits=6)
        repo_id = await bench.pushed(history)
        answer = await bench.fetch(repo_id, [history.head.commit_id])
        assert answer["size_bytes"] > 1000
    async with bench_on(engine, store=bench.store, settings=settings) as later:
        async with asyncio.timeout(10):
            while later.gateway.packs.kept.has_room():  # noqa: ASYNC110  nobody is told of it
                await asyncio.sleep(0.01)


async def test_a_shared_pack_that_is_gone_is_built_again(bench: Bench) -> None:
    """Somebody emptied the bucket: no half answer, and no endless error."""
    history = make_history(7, commits=6)
    repo_id = await bench.pushed(history)
    head = history.head.commit_id
    answer = await bench.fetch(repo_id, [head])
    for key in bench.transient():
        del bench.store.blobs[key]
    inline = await fetch_inline(bench, repo_id, [head])
    assert inline.mpack_id != answer["mpack_id"]
    assert {one["commit_id"] for one in (await body(inline))["commits"]} == lacking(
        history, [head], []
    )[0]


async def test_a_store_that_fails_fails_before_the_first_byte(engine: AsyncEngine) -> None:
    class Failing(MemoryStore):
        async def get(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
            if "transient/" in key and not key.endswith(".owner"):
                raise ConnectionResetError
            return await super().get(key, start, stop)

    async with bench_on(engine, store=Failing()) as bench:
        history = make_history(7, commits=6)
        repo_id = await bench.pushed(history)
        await bench.fetch(repo_id, [history.head.commit_id])
        with pytest.raises(StoreUnavailable):
            await fetch_inline(bench, repo_id, [history.head.commit_id])


async def test_a_large_pack_is_read_back_in_ranges(bench: Bench) -> None:
    history = History()
    contents = [bytes([number]) * 3_000_000 for number in range(4)]
    head = history.commit(
        {f"file-{number}": history.content(content) for number, content in enumerate(contents)}
    )
    repo_id = await bench.pushed(history)
    for stored in (False, True):
        inline = await fetch_inline(bench, repo_id, [head.commit_id])
        assert (inline.mpack_id is not None) is stored
        found = await body(inline)
        assert [one["content"] for one in found["objects"]] == contents
        assert bench.gateway.packs.budget.bytes_held == 0


async def test_a_caller_who_hangs_up_before_the_first_byte_gives_the_spool_back(
    bench: Bench,
) -> None:
    history = make_history(7, commits=6)
    repo_id = await bench.pushed(history)
    inline = await fetch_inline(bench, repo_id, [history.head.commit_id])
    assert bench.gateway.packs.budget.bytes_held > 0
    scope = {"type": "http", "asgi": {"spec_version": "2.4"}, "headers": []}

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(_message: Any) -> None:
        raise OSError

    with pytest.raises(ClientDisconnect):
        await PackResponse(inline)(scope, receive, send)
    assert bench.gateway.packs.budget.bytes_held == 0


async def test_without_urls_an_inline_answer_stores_nothing(engine: AsyncEngine) -> None:
    async with bench_on(engine, store=MemoryStore(supports_presign=False)) as bench:
        history = make_history(7, commits=6)
        repo_id = await bench.pushed(history)
        found = await body(await fetch_inline(bench, repo_id, [history.head.commit_id]))
        assert len(found["commits"]) == len(lacking(history, [history.head.commit_id], [])[0])
        assert bench.transient() == []
