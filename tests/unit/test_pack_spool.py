"""Spools and turns: bounded, and whole again after every failure."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import BuildsBusy, SpoolFull
from gateway.packs.policy import PackPolicy
from gateway.packs.spool import Spool, SpoolBudget
from gateway.packs.turns import BuildTurns

POLICY = PackPolicy(spool_memory_bytes=1000, spool_bytes_max=10_000_000)
DATA = bytes(range(256)) * 1000


def spool_of(budget: SpoolBudget | None = None, **changes: Any) -> Spool:
    return Spool(replace(POLICY, **changes), budget or SpoolBudget(POLICY.spool_bytes_max))


async def append(spool: Spool, data: bytes) -> None:
    await spool.append(lambda: data, work_bytes=len(data))


@pytest.mark.parametrize("size", [0, 10, 1000, 250_000])
async def test_a_spool_gives_back_what_it_took(size: int, tmp_path: Path) -> None:
    budget = SpoolBudget(1_000_000)
    spool = spool_of(budget, spool_dir=tmp_path)
    for start in range(0, size, 70_000):
        part = DATA[start : min(start + 70_000, size)]
        await append(spool, part)
    assert budget.bytes_held == spool.size_bytes == size
    assert b"".join([chunk async for chunk in spool.chunks(3000)]) == DATA[:size]
    assert await spool.read(size // 3, size // 2) == DATA[size // 3 : size // 2]
    await spool.close()
    await spool.close()
    assert budget.bytes_held == 0
    assert list(tmp_path.iterdir()) == []  # noqa: ASYNC240  an empty folder


async def test_reads_at_once_do_not_disturb_each_other() -> None:
    spool = spool_of()
    await append(spool, DATA)
    async with asyncio.TaskGroup() as tasks:
        reads = [
            tasks.create_task(spool.read(start, start + 80_000)) for start in range(0, 160_000, 999)
        ]
    for start, read in zip(range(0, 160_000, 999), reads, strict=True):
        assert read.result() == DATA[start : start + 80_000]
    await spool.close()


async def test_all_spools_share_one_budget() -> None:
    budget = SpoolBudget(100)
    first, second = spool_of(budget), spool_of(budget)
    await append(first, b"x" * 60)
    with pytest.raises(SpoolFull):
        await append(second, b"x" * 50)
    await first.close()
    await append(second, b"x" * 50)
    await second.close()
    assert budget.bytes_held == 0


async def test_a_full_disk_is_told_as_such() -> None:
    budget = SpoolBudget(1_000_000)
    spool = spool_of(budget)
    spool._file = Path("/dev/full").open("r+b", buffering=0)  # noqa: ASYNC230, SIM115  the spool closes it
    with pytest.raises(SpoolFull):
        await append(spool, b"x" * 2000)
    await spool.close()
    assert budget.bytes_held == 0


async def test_closing_waits_for_the_thread() -> None:
    spool = spool_of()
    working = asyncio.create_task(append(spool, b"x" * 5_000_000))
    await asyncio.sleep(0)
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    await spool.close()


async def test_what_is_closed_is_freed_though_nobody_waits_for_it() -> None:
    """Else each such end of a request would take its bytes out of the budget for good."""
    budget = SpoolBudget(1_000_000)
    spool = spool_of(budget)
    await append(spool, DATA)
    goes_on = threading.Event()
    work = spool.begun(goes_on.wait)
    closing = asyncio.ensure_future(spool.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert budget.bytes_held == len(DATA)
    goes_on.set()
    await work
    await asyncio.sleep(0)
    assert budget.bytes_held == 0


async def test_only_so_many_build_at_once_and_the_queue_is_short() -> None:
    turns = BuildTurns(PackPolicy(builds_at_once=1, builds_waiting_max=1, build_wait_seconds=30))
    inside, leave = asyncio.Event(), asyncio.Event()

    async def build() -> None:
        async with turns.turn():
            inside.set()
            await leave.wait()

    first = asyncio.create_task(build())
    await inside.wait()
    second = asyncio.create_task(build())
    await asyncio.sleep(0)
    assert turns.waiting == 1
    with pytest.raises(BuildsBusy) as refused:
        await build()
    assert refused.value.fields["retry_after_seconds"] == 30
    leave.set()
    await asyncio.gather(first, second)
    assert turns.waiting == 0


async def test_waiting_for_a_turn_has_an_end() -> None:
    turns = BuildTurns(PackPolicy(builds_at_once=1, build_wait_seconds=0.01))
    async with turns.turn():
        with pytest.raises(BuildsBusy):
            async with turns.turn():
                raise AssertionError("two at once")
    async with turns.turn():
        pass


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"builds_at_once": 0}, "builds_at_once"),
        ({"slot_limit_seconds": 3}, "slot_limit_seconds"),
        ({"zstd_level": 20}, "zstd_level"),
        ({"build_read_bytes_max": 100}, "build_read_bytes_max"),
        ({"spool_memory_bytes": 1 << 40}, "spool_memory_bytes"),
    ],
)
def test_settings_that_cannot_work_are_told(changes: dict[str, int], word: str) -> None:
    assert PackPolicy().problems() == []
    assert any(word in problem for problem in PackPolicy(**changes).problems())  # type: ignore[arg-type]
