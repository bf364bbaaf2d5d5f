"""Tasks of one piece of work end with one error: ours before others, whatever it is wrapped in."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from gateway.together import together
from leases.errors import StoreUnavailable


async def fail(error: Exception) -> None:
    raise error


async def all_of(*works: Coroutine[Any, Any, None]) -> None:
    async with together() as tasks:
        for work in works:
            tasks.create_task(work)


async def test_a_failure_of_ours_comes_before_others() -> None:
    with pytest.raises(StoreUnavailable):
        await all_of(fail(ZeroDivisionError()), fail(StoreUnavailable()))


async def test_another_error_is_raised_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        await all_of(fail(ZeroDivisionError()))


async def test_what_fails_within_ends_what_is_around_it() -> None:
    ended = asyncio.Event()

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def inner() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail(StoreUnavailable()))

    with pytest.raises(StoreUnavailable):
        await all_of(wait(), inner())
    assert ended.is_set()
