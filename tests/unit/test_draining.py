"""What a signal does to a server, whenever it comes."""

from __future__ import annotations

import asyncio
import io
import json
import signal
from pathlib import Path

import pytest
import structlog
from starlette.datastructures import Secret

from gateway import logs
from gateway.cli.serve import make_server
from gateway.draining import DrainingServer
from gateway.settings import Settings


class Interrupted(io.StringIO):
    """A log that a signal interrupts in the middle of its first line."""

    def __init__(self, server: DrainingServer) -> None:
        super().__init__()
        self._server: DrainingServer | None = server

    def write(self, text: str) -> int:
        if self._server is None:
            return super().write(text)
        server, self._server = self._server, None
        super().write(text[:10])
        server.handle_exit(signal.SIGTERM, None)
        super().write(text[10:])
        return len(text)


@pytest.mark.usefixtures("logging_restored")
async def test_a_signal_in_the_middle_of_a_line_of_the_log_cuts_nothing(tmp_path: Path) -> None:
    settings = Settings(database_url=Secret("postgresql+asyncpg:///none"), data_dir=tmp_path)
    server = make_server(settings)
    said = Interrupted(server)
    logs.configure(log_format="json", level="info", stream=said)
    structlog.get_logger().info("a line")
    while not server.should_exit:  # noqa: ASYNC110  uvicorn's server has no event for it
        await asyncio.sleep(0)
    told = [json.loads(line)["event"] for line in said.getvalue().splitlines()]
    assert told == ["a line", "replica_stopping"]
