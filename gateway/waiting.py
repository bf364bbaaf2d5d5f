"""Waiting for an event, and not for ever."""

from __future__ import annotations

import asyncio


async def came(event: asyncio.Event, *, seconds_max: float) -> bool:
    """Whether the event is there, now or within this time."""
    try:
        async with asyncio.timeout(seconds_max):
            await event.wait()
    except TimeoutError:
        return False
    return True
