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
from leases.errors import Failure

_log = structlog.get_logger(__name__)


class DrainingServer(uvicorn.Server):
    """The first SIGTERM or SIGINT begins to drain, for `drain_seconds`; the second ends at once."""

    def __init__(self, config: uvicorn.Config, *, service: Service) -> None:
        super().__init__(config)
        self._service = service

    @property
    def failure(self) -> Failure | None:
        """What kept the service from starting, where it was no bug."""
        return self._service.failure

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._service.stopping:
            super().handle_exit(sig, frame)
            return
        self._service.stopping = True
        # A signal's handler may run in the middle of anything, such as a line of the log being
        # written: one that writes a line itself cuts that one in two, or fails.
        asyncio.get_running_loop().call_soon_threadsafe(self._drain, sig, frame)

    def _drain(self, sig: int, frame: FrameType | None) -> None:
        seconds = self._service.settings.drain_seconds
        _log.info("replica_stopping", drain_seconds=seconds)
        asyncio.get_running_loop().call_later(seconds, super().handle_exit, sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Not before: a reader who comes back shall find another replica, and not this one again;
        # and not later, because the server waits for open streams before the lifespan ends.
        self._service.stopping = True
        self._service.feed.close()
        await super().shutdown(sockets)
