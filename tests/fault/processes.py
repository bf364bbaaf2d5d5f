"""Real gateway processes on one database and one store, to be killed, frozen and started again.

Every process gets a loopback port of its own, short limits, and a log file in the test's folder.
`Gateways` is an async context manager; whatever happens in its block, nothing is left running.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import msgpack

from leases.steps import Step
from tests.integration.gateways import MSGPACK, Answer, decoded, free_port
from tests.leasing import until
from tests.stores import StoreView, variables_of, view_of

ROOT = Path(__file__).resolve().parents[2]
_PROGRAM = (sys.executable, "-c", "from gateway.cli import main; main()")
_BY_A_WRONG_CLOCK = (sys.executable, "-m", "tests.fault.wall_clock")
_START_SECONDS_MAX = 30.0
_END_SECONDS_MAX = 20.0
_CALL_SECONDS_MAX = 20.0

# Short, so that what has to pass can be waited for. All else is the default.
SHORT: Mapping[str, object] = {
    "claim_limit_seconds": 2,
    "delete_timeout_seconds": 1,
    "upload_limit_seconds": 3,
    "upload_margin_seconds": 1,
    "share_ttl_min_seconds": 1,
    "share_guard_seconds": 0.1,
}


@dataclass(slots=True, kw_only=True)
class GatewayProcess:
    """One gateway; `log` holds what it said, `ready_as` what /readyz says when all is as wanted."""

    url: str
    log: Path
    process: subprocess.Popen[bytes]
    http: httpx2.AsyncClient
    ready_as: str = "ok"

    async def has_ended(self) -> bool:
        return self.process.poll() is not None

    def kill(self) -> None:
        """Kill -9, as the kernel does when memory is short, and wait for its end."""
        self.process.kill()
        self.process.wait(_END_SECONDS_MAX)

    def freeze(self) -> None:
        """SIGSTOP: it does nothing any more, and its connections stay open."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def terminate(self) -> int:
        """SIGTERM; answers the exit code."""
        self.process.terminate()
        return self.process.wait(_END_SECONDS_MAX)

    async def died(self) -> int:
        """Wait for an end that it brings about by itself; answers the return code."""
        await until(self.has_ended, _END_SECONDS_MAX)
        return self.process.wait()

    def said(self, event: str) -> list[dict[str, Any]]:
        """Its log lines of one event so far."""
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [told for line in lines if (told := json.loads(line))["event"] == event]

    async def call(
        self, method: str, path: str, body: object = None, *, token: str | None = None
    ) -> Answer:
        """One call as the Muse client makes it, over a connection of its own."""
        headers = {"Accept": MSGPACK, "Connection": "close", "Content-Type": MSGPACK}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        content = None if body is None else bytes(msgpack.packb(body))
        response = await self.http.request(
            method, self.url + path, content=content, headers=headers
        )
        kind = response.headers.get("content-type", "")
        return Answer(
            status=response.status_code,
            headers=response.headers,
            body=decoded(kind, response.content),
        )

    async def is_ready(self) -> bool:
        """Whether /readyz says what is wanted; a process that has ended never will."""
        assert not await self.has_ended(), f"it ended at once: {self.log.read_text()[-3000:]}"
        try:
            return bool((await self.call("GET", "/readyz")).body["status"] == self.ready_as)
        except httpx2.TransportError:
            return False


@dataclass(slots=True, kw_only=True)
class Gateways:
    """Starts gateways on one database and one store."""

    database_url: str
    folder: Path
    http: httpx2.AsyncClient
    processes: list[GatewayProcess] = field(default_factory=list)

    @property
    def store(self) -> Path:
        """The folder of blobs that all of them share; on S3 a bucket stands for it."""
        return self.folder / "blobs"

    @property
    def view(self) -> StoreView:
        """That store from outside."""
        return view_of(self.store)

    async def start(self, *, crash_at: Step | None = None, **settings: Any) -> GatewayProcess:
        """A gateway that is ready, or with `crash_at` one that is about to be or died on the way.

        Two settings are about the process: `confined=True` takes root's power over file modes away
        from it, and by `clock_shift` (a timedelta) its wall clock is wrong, which /readyz tells.
        """
        process = self._launch(crash_at, settings)
        if crash_at is None:
            await until(process.is_ready, _START_SECONDS_MAX)
        return process

    async def start_serving(self, crash_at: Step, **settings: Any) -> GatewayProcess:
        """A gateway that will crash at a step, once it answers."""
        process = await self.start(crash_at=crash_at, **settings)
        await until(process.is_ready, _START_SECONDS_MAX)
        return process

    def _launch(self, crash_at: Step | None, settings: dict[str, Any]) -> GatewayProcess:
        confinement = _confinement(confined=bool(settings.pop("confined", False)))
        shift: timedelta = settings.pop("clock_shift", timedelta())
        wrong = (*_BY_A_WRONG_CLOCK, str(shift.total_seconds()))
        told = {"database_url": self.database_url, **SHORT, "port": free_port(), **settings}
        told |= variables_of(self.store) | {"log_format": "json"}
        if crash_at is not None:
            told["crash_at"] = crash_at.value
        log = self.folder / f"gateway-{len(self.processes)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*confinement, *(wrong if shift else _PROGRAM), "serve"],
                cwd=ROOT,
                env=_environment(told),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        url = f"http://127.0.0.1:{told['port']}"
        gateway = GatewayProcess(
            url=url,
            log=log,
            process=process,
            http=self.http,
            ready_as="degraded" if shift else "ok",
        )
        self.processes.append(gateway)
        return gateway

    def end(self) -> None:
        """Kill whatever runs still, frozen ones too."""
        for gateway in self.processes:
            gateway.kill()


@asynccontextmanager
async def gateways_on(database_url: str, folder: Path) -> AsyncIterator[Gateways]:
    """Gateways for the time of the block."""
    async with httpx2.AsyncClient(timeout=_CALL_SECONDS_MAX, trust_env=False) as http:
        gateways = Gateways(database_url=database_url, folder=folder, http=http)
        try:
            yield gateways
        finally:
            gateways.end()


def _environment(settings: Mapping[str, object]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MPACK_")}
    return kept | {f"MPACK_{name.upper()}": str(value) for name, value in settings.items()}


def _confinement(*, confined: bool) -> list[str]:
    """What stands before the command: dies with us; file modes hold for root too, if asked."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        assert not (confined and os.geteuid() == 0), "this test run by root needs setpriv"
        return []
    powers = ["--bounding-set", "-dac_override,-dac_read_search"]
    return [setpriv, "--pdeathsig", "KILL", *(powers if confined and os.geteuid() == 0 else [])]
