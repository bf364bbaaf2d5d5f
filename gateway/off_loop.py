"""Work that would hold the event loop, and with it deletions that are promised to be on time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def off_loop(work: Callable[[], T], *, much: bool) -> T:
    """Do this; in a thread where it is `much`: for less, the change of threads costs more."""
    return await asyncio.to_thread(work) if much else work()
