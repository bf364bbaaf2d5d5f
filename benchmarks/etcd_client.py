"""etcd as a process, and leases through its JSON gateway on connections that stay open."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Callable, Coroutine, Iterable
from math import floor
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.etcd_worker import PREFIX, quoted
from tests.integration.gateways import free_port

_CALLERS = 64
_POLL_SECONDS = 0.02
_DAY_SECONDS = 86_400
_QUOTA_BYTES = 8 << 30  # Its default of 2 GiB is for clusters that share a disk.


class Etcd:
    """One server on loopback, its data in a folder; a restart finds it again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port, self._peer_port = free_port(), free_port()

    @property
    def url(self) -> str:
        """Where clients ask."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> subprocess.Popen[bytes]:
        """Run it; with one member every write is synced once."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        peer = f"http://127.0.0.1:{self._peer_port}"
        options = {
            "data-dir": str(self._folder / "data"),
            "listen-client-urls": self.url,
            "advertise-client-urls": self.url,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"default={peer}",
            "quota-backend-bytes": str(_QUOTA_BYTES),
            # What was left of a lease's life is kept; else a restart may prolong it for ever.
            "experimental-enable-lease-checkpoint": "true",
            "logger": "zap",  # With its older one 3.4 does not start with checkpoints.
            "log-level": "error",
        }
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(
                ["etcd", *(f"--{name}={value}" for name, value in options.items())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    async def answers(self, *, seconds_max: float) -> None:
        """Wait until it does."""
        async with (
            asyncio.timeout(seconds_max),
            httpx2.AsyncClient(base_url=self.url, trust_env=False) as http,
        ):
            while True:
                try:
                    if (await http.get("/health")).json()["health"] == "true":
                        return
                except (httpx2.TransportError, KeyError, ValueError):
                    pass
                await asyncio.sleep(_POLL_SECONDS)


class _Connection:
    """One connection; a library costs more than etcd's own work."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def call(self, path: str, body: object) -> Any:
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
        self._writer.write(head.encode() + content)
        told = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        assert told.startswith(b"http/1.1 200"), told
        length = int(told.partition(b"content-length:")[2].partition(b"\r\n")[0])
        return json.loads(await self._reader.readexactly(length))

    async def lease(self, name: str, ttl_seconds: int) -> None:
        granted = await self.call("/v3/lease/grant", {"TTL": ttl_seconds})
        put = {"key": quoted(name), "value": "", "lease": granted["ID"]}
        await self.call("/v3/kv/put", put)


async def _each(
    port: int, names: Iterable[str], turn: Callable[[_Connection, str], Coroutine[Any, Any, None]]
) -> None:
    todo = iter(names)

    async def caller() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        connection = _Connection(reader, writer)
        for name in todo:
            await turn(connection, name)
        writer.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(_CALLERS):
            group.create_task(caller())


async def lease_for_a_day(port: int, count: int) -> None:
    """So many leases that are not yet due, each with a key that nobody watches."""

    async def turn(connection: _Connection, name: str) -> None:
        await connection.lease(name, _DAY_SECONDS)

    await _each(port, (f"later/{number}" for number in range(count)), turn)


async def lease_to_one_second(port: int, names: list[str], *, ttl_seconds: int) -> dict[str, float]:
    """A lease and a key for each, which all end within one second; the end of each.

    A TTL is whole seconds: the later one is granted, the fewer it gets.
    """
    began = time.time()
    due: dict[str, float] = {}

    async def turn(connection: _Connection, name: str) -> None:
        asked = time.time()
        left = ttl_seconds - floor(asked - began)
        await connection.lease(PREFIX + name, left)
        due[name] = asked + left

    await _each(port, names, turn)
    assert time.time() < began + ttl_seconds, "granting took too long"
    return due
