"""A pack as the body of an answer, from the same slot as everybody's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.errors import TooLarge
from gateway.packs.inline import InlinePack
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
        with pytest.raises(StoreUnavailable):
            await fetch_inline(bench, repo_id, [history.head.commit_id])


async def test_a_large_pack_is_read_back_in_ranges(bench: Bench) -> None:
    history = History()
    contents = [bytes([number]) * 3_000_000 for number in range(4)]
    head = history.commit(
        {f"file-{number}": history.content(content) for number, content in enumerate(contents)}
    )
    repo_id = await bench.pushed(history)
    found = await body(await fetch_inline(bench, repo_id, [head.commit_id]))
    assert [one["content"] for one in found["objects"]] == contents
    assert bench.gateway.packs.budget.bytes_held == 0


async def test_without_urls_an_inline_answer_stores_nothing(engine: AsyncEngine) -> None:
    async with bench_on(engine, store=MemoryStore(supports_presign=False)) as bench:
        history = make_history(7, commits=6)
        repo_id = await bench.pushed(history)
        found = await body(await fetch_inline(bench, repo_id, [history.head.commit_id]))
        assert len(found["commits"]) == len(lacking(history, [history.head.commit_id], [])[0])
        assert bench.transient() == []
