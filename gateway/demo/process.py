"""The gateway as a process of its own: `mpack-gateway dev`, started, killed, started again."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2

from gateway.cli.serve import listening_socket
from gateway.embedded_postgres import EmbeddedPostgres
from gateway.postgres_processes import processes_in
from gateway.settings import child_environment
from leases.errors import Unavailable

_START_SECONDS_MAX = 60.0
_STOP_SECONDS_MAX = 20.0
_POLL_SECONDS = 0.02
_HOST = "127.0.0.1"


class GatewayProcess:
    """One embedded gateway in one folder, on one port through all its lives.

    `settings` are MPACK_* variables on top of what `dev` sets itself.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str], *, log_file: Path) -> None:
        self.folder = folder
        self.log_file = log_file
        self._settings = dict(settings)
        self._postgres = EmbeddedPostgres(folder / "postgres")  # Never started from here.
        with listening_socket(_HOST) as free:
            self._port = free.getsockname()[1]
        self.url = f"http://{_HOST}:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None
        self._http = httpx2.Client(base_url=self.url, trust_env=False, timeout=10)

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def token(self) -> str:
        """The admin token that `dev` made."""
        return (self.folder / "admin-token").read_text().strip()

    def start(self) -> float:
        """Start it; the seconds until it was ready.

        Errors: Unavailable with the end of its log.
        """
        began = time.monotonic()
        command = [*_command(), "dev", "--data", str(self.folder), "--port", str(self._port)]
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [*_tied_to_this_process(), *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # It prints the admin token there.
                stderr=log,
                env=child_environment(self._settings),
                start_new_session=True,  # The terminal's Ctrl-C is ours to pass on.
            )
        while not self._is_ready():
            waited = time.monotonic() - began
            if self._process.poll() is not None or waited > _START_SECONDS_MAX:
                said = self.log_file.read_text(errors="replace").strip()[-1000:]
                raise Unavailable(f"The gateway did not start. Its log ends:\n{said}")
            time.sleep(_POLL_SECONDS)
        return time.monotonic() - began

    def kill(self) -> None:
        """`kill -9`: no clean-up, no farewell."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def wait(self) -> None:
        """Wait for its end, which somebody else brings about."""
        assert self._process is not None
        self._process.wait()

    def stop(self) -> int | None:
        """End it as Ctrl-C would; its exit code, None when it had never been started."""
        if self._process is None:
            return None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                self.kill()
        return self._process.returncode

    def close(self) -> None:
        """Stop it, and let go of the connections."""
        self.stop()
        self._http.close()

    def remove(self) -> None:
        """Delete everything it kept, also a database that had to lie elsewhere."""
        self._postgres.remove()
        shutil.rmtree(self.folder, ignore_errors=True)

    def database_processes(self) -> list[int]:
        """The ids of PostgreSQL's processes that live on this folder."""
        return processes_in(self._postgres.data_folder)

    def lease(self, mpack_id: str) -> dict[str, Any]:
        """One lease with its events, as `/v1/leases/{id}` tells it."""
        answer = self._http.get(
            f"/v1/leases/{mpack_id}", headers={"Authorization": f"Bearer {self.token}"}
        )
        answer.raise_for_status()
        lease: dict[str, Any] = answer.json()
        return lease

    def status_of(self, url: str) -> int:
        """What a presigned URL answers, its body unread."""
        with self._http.stream("GET", url) as answer:
            return answer.status_code

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Another command of ours, on this gateway's settings, as `mpack.env` holds them."""
        lines = (self.folder / "mpack.env").read_text().splitlines()
        settings = dict(line.split("=", 1) for line in lines)
        plain = {name: text.strip("'") for name, text in settings.items()}
        return subprocess.run(
            [*_command(), *words],
            env=child_environment(plain | self._settings),
            capture_output=True,
            text=True,
            timeout=_START_SECONDS_MAX,
            check=False,
        )

    def _is_ready(self) -> bool:
        try:
            return self._http.get("/readyz").status_code == 200
        except httpx2.TransportError:
            return False


def _command() -> list[str]:
    """This program, by the interpreter that runs now, whatever PATH says."""
    return [sys.executable, "-c", "from gateway.cli import main; main()"]


def _tied_to_this_process() -> list[str]:
    """Where the system has it: the gateway is told to end when this process is killed."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []
