"""The command `serve` in a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.place import Home, serving
from benchmarks.usage import memory_bytes_peak
from gateway.auth import Scope

_END_SECONDS_MAX = 30.0
_POLL_SECONDS = 0.05


@dataclass(slots=True, kw_only=True)
class ServedGateway:
    """The command `serve` as a process, and what it logged."""

    token: str
    process: subprocess.Popen[bytes]
    port: int
    log: Path
    began: float

    @classmethod
    def start(
        cls,
        home: Home,
        *,
        token: str,
        name: str = "serve",
        settings: Mapping[str, str] | None = None,
    ) -> ServedGateway:
        """Run it, with these variables as well; nobody waits for it here.

        Replicas of one home have names of their own.
        """
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        log = home.folder / f"{name}.log"
        environ = {
            "MPACK_DATABASE_URL": home.url,
            "MPACK_DATA_DIR": str(home.folder / "blobs"),
            "MPACK_SPOOL_DIR": str(home.folder),
            "MPACK_LOG_FORMAT": "json",
        }
        began = time.time()
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "gateway", "serve", "--port", str(port)],
                env=os.environ | environ | dict(settings or {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        return cls(token=token, process=process, port=port, log=log, began=began)

    @property
    def url(self) -> str:
        """Where it answers, once it does."""
        return f"http://127.0.0.1:{self.port}"

    async def answers(self, http: httpx2.AsyncClient, *, seconds_max: float) -> None:
        """Wait until it does."""
        async with asyncio.timeout(seconds_max):
            while True:
                try:
                    await http.get("/livez")
                except httpx2.ConnectError:
                    await asyncio.sleep(_POLL_SECONDS)
                else:
                    return

    def said_at(self, event: str, **fields: object) -> float:
        """When it first logged this line, with these fields."""
        for line in self.log.read_text().splitlines():
            told: dict[str, Any] = json.loads(line)
            if told["event"] == event and fields.items() <= told.items():
                return datetime.fromisoformat(told["timestamp"]).timestamp()
        raise AssertionError(event)

    def end(self) -> float:
        """End it; the most memory it held, in bytes."""
        held = memory_bytes_peak(self.process.pid)
        self.process.terminate()
        self.process.wait(_END_SECONDS_MAX)
        return held


async def admin_token(home: Home) -> str:
    """Be there once, so that the store carries its mark; answers a token."""
    async with serving(home) as service:
        return (await service.tokens.create(name="benchmark", scopes=[Scope.ADMIN])).secret
