"""A server that says "not ready" for a while before it stops to listen.

A proxy that asks `/readyz` has then taken the replica out before the first connection is refused.
"""

from __future__ import annotations

import asyncio
import socket
from types import FrameType

import structlog
import uvicorn

from gateway.service import Service

_log = structlog.get_logger(__name__)


class DrainingServer(uvicorn.Server):
    """The first SIGTERM or SIGINT begins to drain, for `drain_seconds`; the second ends at once."""

    def __init__(self, config: uvicorn.Config, *, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        service = self._service
        if service.stopping or self._loop is None:
            super().handle_exit(sig, frame)
            return
        service.stopping = True
        seconds = service.settings.drain_seconds
        _log.info("replica_stopping", drain_seconds=seconds)
        # A signal's handler may run between any two steps of the loop.
        end = super().handle_exit
        self._loop.call_soon_threadsafe(self._loop.call_later, seconds, end, sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Not before: a reader who comes back shall find another replica, and not this one again;
        # and not later, because the server waits for open streams before the lifespan ends.
        self._service.stopping = True
        self._service.feed.close()
        await super().shutdown(sockets)
