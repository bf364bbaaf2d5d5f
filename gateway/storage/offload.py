"""Blocking file work on threads of our own, with a clear answer to cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


class Offload:
    """A small pool of threads; asyncio's own is shared with name look-ups and the host."""

    def __init__(self, name: str, *, threads_max: int) -> None:
        self._threads = ThreadPoolExecutor(threads_max, thread_name_prefix=name)

    async def run(self, work: Callable[[], T]) -> T:
        """Do this on a thread. When cancelled, work not yet begun is dropped and begun work is
        waited for, so that nothing of it happens after the cancellation has been seen.
        """
        future = self._threads.submit(work)
        try:
            return await asyncio.shield(asyncio.wrap_future(future))
        except asyncio.CancelledError:
            future.cancel()
            await _settled(future)
            raise

    async def finish(self, work: Callable[[], T]) -> T:
        """Do this on a thread, to its end even when cancelled: for cleaning up."""
        future = self._threads.submit(work)
        try:
            return await asyncio.shield(asyncio.wrap_future(future))
        except asyncio.CancelledError:
            await _settled(future)
            raise

    async def run_or_leave(self, work: Callable[[], T]) -> T:
        """Do this on a thread; when cancelled, leave it to itself.

        For work that may safely happen late: a frozen disk then costs a thread, but the caller's
        time limit holds.
        """
        return await asyncio.wrap_future(self._threads.submit(work))

    async def close(self) -> None:
        """Drop what has not begun; threads end once they are through."""
        self._threads.shutdown(wait=False, cancel_futures=True)


async def _settled(future: Future[T]) -> None:
    """Wait for a thread's work, whatever comes of it and however often we are cancelled."""
    waiting = asyncio.wrap_future(future)
    while not waiting.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([waiting])
    if not waiting.cancelled():
        waiting.exception()  # Marks it as seen; the cancellation is what the caller hears of.
