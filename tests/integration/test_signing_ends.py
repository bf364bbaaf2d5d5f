"""Where URLs are signed with temporary keys, no promise outlives them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from leases.clock import SystemClock
from tests.factories import make_history
from tests.fakes import MemoryStore
from tests.integration.fetching import Bench, bench_on


class TemporaryStore(MemoryStore):
    """Its keys end at `ends_at`."""

    ends_at: datetime | None = None

    async def signing_ends_at(self) -> datetime | None:
        return self.ends_at


@pytest.fixture
def store() -> TemporaryStore:
    store = TemporaryStore()
    store.ends_at = SystemClock().now() + timedelta(seconds=100)
    return store


@pytest.fixture
async def bench(engine: AsyncEngine, store: TemporaryStore) -> AsyncIterator[Bench]:
    async with bench_on(engine, store=store) as bench:
        yield bench


async def test_a_url_ends_with_its_keys(bench: Bench, store: TemporaryStore) -> None:
    history = make_history(1)
    repo_id = await bench.pushed(history)
    for share in (True, False):
        answer = await bench.fetch(repo_id, [history.head.commit_id], ttl_seconds=3600, share=share)
        assert answer["expires_at"] is not None
        ends = datetime.fromisoformat(answer["expires_at"])
        assert store.ends_at is not None
        assert abs(ends - store.ends_at) < timedelta(seconds=1)


async def test_it_is_shared_all_the_same(bench: Bench, store: TemporaryStore) -> None:
    """Else everybody would build alone in the last quarter of an hour of the keys."""
    history = make_history(1)
    repo_id = await bench.pushed(history)
    first, second = [
        await bench.fetch(repo_id, [history.head.commit_id], ttl_seconds=3600) for _ in range(2)
    ]
    assert first["mpack_id"] == second["mpack_id"]
    assert second["shared"]


async def test_new_keys_lengthen_a_shared_pack(bench: Bench, store: TemporaryStore) -> None:
    history = make_history(1)
    repo_id = await bench.pushed(history)
    first = await bench.fetch(repo_id, [history.head.commit_id], ttl_seconds=600)
    store.ends_at = None
    second = await bench.fetch(repo_id, [history.head.commit_id], ttl_seconds=600)
    assert first["mpack_id"] == second["mpack_id"]
    assert second["expires_in"] is not None
    assert second["expires_in"] > 590
