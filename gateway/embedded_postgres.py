"""A PostgreSQL of our own, in one folder, for `dev`, `demo` and the tests.

The wheels that carry PostgreSQL's programs bring starters too, which create system users and
change the modes of parent folders when run by root; so this is ours, and small. What it promises:

- It listens on a unix socket alone, in a folder of its own that only its account can enter.
- Started by root it runs as an unprivileged account (see `postgres_binaries`), which is given the
  `data` subfolder and the socket folder and nothing else. Where a parent folder keeps that
  account out, the data lies below /var/tmp instead; `data_folder` and the file `moved-to` name it.
- A terminal's Ctrl-C does not reach it, `stop()` leaves nothing running, and when this process is
  killed it shuts itself down (Linux, with util-linux's setpriv). Without that, or after a crash of
  its own, the next `start()` ends what is left of it first. No two processes use one folder.

    folder/lock        held by the process that uses this folder
    folder/data/       the cluster                   (or folder/moved-to: where it is)
    folder/socket-at   where the socket folder is, while it is
    folder/server.log  what PostgreSQL says
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Self
from urllib.parse import quote

import structlog

from gateway.postgres_binaries import Account, account, programs
from gateway.postgres_processes import ENDINGS, end_processes
from leases.errors import Unavailable

SUPERUSER = "mpack"
_SOCKET = ".s.PGSQL.5432"
_SOCKET_PREFIX = "mpg-"
_SOCKET_PATH_BYTES_MAX = 107  # sun_path of Linux, less the closing zero.
_START_SECONDS = 60  # A crash recovery on a slow disk; a healthy start takes 0.1 s.
_POLL_SECONDS = 0.02
_LOG_BYTES_MAX = 4 << 20
_DEFAULTS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "timezone": "UTC",
    "log_timezone": "UTC",
}

log = structlog.get_logger()


class EmbeddedPostgres:
    """One PostgreSQL server below `folder`, started and stopped by this process.

    `settings` go to the server as they are (`{"fsync": "off"}` in tests); `binaries` is the bin
    folder of another PostgreSQL, 15 or newer. Start it from the main thread: the kernel ties the
    server's end to the thread that started it, so from any other thread that tie is left out.
    """

    def __init__(
        self,
        folder: Path,
        *,
        settings: Mapping[str, str] | None = None,
        binaries: Path | None = None,
    ) -> None:
        self._folder = folder.resolve()
        self._settings = {**_DEFAULTS, **(settings or {})}
        self._binaries = binaries
        self._process: subprocess.Popen[bytes] | None = None
        self._socket_folder: Path | None = None
        self._lock: IO[bytes] | None = None

    @property
    def data_folder(self) -> Path:
        """Where the cluster is: below our folder, or where `moved-to` says."""
        moved = _read(self._folder / "moved-to")
        return Path(moved) if moved else self._folder / "data"

    @property
    def pid(self) -> int:
        """The postmaster's process id."""
        assert self._process is not None, "not started"
        return self._process.pid

    def url(self, database: str = "postgres") -> str:
        """The address for SQLAlchemy's asyncpg dialect."""
        assert self._socket_folder is not None, "not started"
        place = quote(str(self._socket_folder), safe="/")
        return f"postgresql+asyncpg://{SUPERUSER}@/{quote(database)}?host={place}&port=5432"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def start(self) -> None:
        """Run the server and return when it takes connections.

        Errors: Unavailable with a sentence for the person at the terminal.
        """
        assert self._process is None or self._process.poll() is not None, "already started"
        self._take_lock()
        try:
            runner = account(self.data_folder)
            binaries = self._binaries or programs(runner)
            end_processes(self.data_folder)
            self._remove_socket_folder()
            if not (self.data_folder / "PG_VERSION").exists():
                self._initialise(binaries, runner)
            self._socket_folder = self._make_socket_folder(runner)
            self._launch(binaries, runner)
            self._wait_until_ready()
        except (OSError, subprocess.SubprocessError) as error:
            self.stop()
            raise Unavailable(f"PostgreSQL could not be started: {error}") from error
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Shut the server down; afterwards nothing of it runs and the socket folder is gone."""
        if self._process is not None:
            for sign, seconds in ENDINGS:
                if self._process.poll() is None:
                    self._process.send_signal(sign)
                    _wait(self._process, seconds)
            self._process = None
        if self._lock is not None:
            end_processes(self.data_folder)
            self._remove_socket_folder()
            self._lock.close()
            self._lock = None

    def kill(self) -> None:
        """Crash the server, as a failing machine would: nothing is cleaned up (for tests)."""
        assert self._process is not None, "not started"
        self._process.kill()
        self._process.wait()

    def remove(self) -> None:
        """Stop, and delete the data, wherever it is; also what a killed process left here."""
        self._take_lock()
        self.stop()
        if (self._folder / "moved-to").exists():
            shutil.rmtree(self.data_folder.parent, ignore_errors=True)
        shutil.rmtree(self._folder / "data", ignore_errors=True)
        for name in ("moved-to", "server.log", "lock"):
            (self._folder / name).unlink(missing_ok=True)

    def _take_lock(self) -> None:
        """Hold the folder; the kernel lets go when this process ends, however it ends."""
        if self._lock is not None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = (self._folder / "lock").open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise Unavailable(
                f"Another process already runs PostgreSQL in {self._folder}."
            ) from error
        self._lock = lock

    def _initialise(self, binaries: Path, runner: Account) -> None:
        """Make the cluster beside its place and move it there whole: a crash leaves no half one."""
        making = self._reachable_parent(runner) / "data.new"
        done = subprocess.run(
            [
                *(binaries / "initdb", "--pgdata", making, "--username", SUPERUSER),
                *("--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"),
                "--no-instructions",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_START_SECONDS,
            check=False,
            **runner.popen_arguments(),
        )
        if done.returncode != 0:
            raise Unavailable(f"initdb failed: {done.stdout.strip()[-1000:]}")
        making.rename(making.with_name("data"))

    def _reachable_parent(self, runner: Account) -> Path:
        """Where an empty `data.new` of the account's own lies: our folder, if it gets there."""
        parent = self.data_folder.parent
        if not parent.exists():
            raise Unavailable(
                f"The data of {self._folder} was in {parent}, which is gone. To start afresh "
                f"delete {self._folder / 'moved-to'}."
            )
        _empty_folder(parent / "data.new", runner)
        if runner.may("-w", parent / "data.new"):
            return parent
        (parent / "data.new").rmdir()
        place = self._place_elsewhere()
        _empty_folder(place / "data.new", runner)
        return place

    def _place_elsewhere(self) -> Path:
        """A folder of ours that every account may pass through, named in `moved-to`."""
        # /var/tmp outlives a restart of the machine, /tmp often does not. The name is random: a
        # folder that was deleted and made again must not find its former data.
        persistent = Path("/var/tmp")  # noqa: S108 - mkdtemp makes a folder that only we may fill
        tag = hashlib.sha256(os.fsencode(self._folder)).hexdigest()[:12]
        parent = persistent if os.access(persistent, os.W_OK) else None
        place = Path(tempfile.mkdtemp(prefix=f"mpack-gateway-{tag}-", dir=parent))
        place.chmod(0o711)
        (self._folder / "moved-to").write_text(f"{place / 'data'}\n")
        log.info("postgres_data_moved", folder=str(self._folder), data_folder=str(place / "data"))
        return place

    def _make_socket_folder(self, runner: Account) -> Path:
        """A folder with a short path that the account reaches; after a restart the same again."""
        if self._socket_folder is not None:
            self._socket_folder.mkdir(mode=0o700)
            self._note_socket_folder(self._socket_folder, runner)
            return self._socket_folder
        for parent in (tempfile.gettempdir(), "/tmp", "/var/tmp"):  # noqa: S108 - mkdtemp below
            place = Path(tempfile.mkdtemp(prefix=_SOCKET_PREFIX, dir=parent))
            self._note_socket_folder(place, runner)
            short = len(os.fsencode(place / _SOCKET)) <= _SOCKET_PATH_BYTES_MAX
            if short and runner.may("-w", place):
                return place
            place.rmdir()
        raise Unavailable("No temporary folder has a path short enough for PostgreSQL's socket.")

    def _note_socket_folder(self, place: Path, runner: Account) -> None:
        (self._folder / "socket-at").write_text(f"{place}\n")
        runner.take(place)

    def _remove_socket_folder(self) -> None:
        record = self._folder / "socket-at"
        place = _read(record)
        if place and Path(place).name.startswith(_SOCKET_PREFIX):
            shutil.rmtree(place, ignore_errors=True)
        record.unlink(missing_ok=True)

    def _launch(self, binaries: Path, runner: Account) -> None:
        settings = {**self._settings, "unix_socket_directories": f'"{self._socket_folder}"'}
        command: list[str | Path] = [binaries / "postgres", "-D", self.data_folder]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        setpriv = shutil.which("setpriv")
        if setpriv and threading.current_thread() is threading.main_thread():
            command = [setpriv, "--pdeathsig", "INT", "--", *command]
        with self._open_log() as output:
            self._process = subprocess.Popen(
                command,
                stdout=output,
                stderr=output,
                start_new_session=True,
                **runner.popen_arguments(),
            )

    def _open_log(self) -> IO[bytes]:
        path = self._folder / "server.log"
        keep = path.exists() and path.stat().st_size < _LOG_BYTES_MAX
        return path.open("ab" if keep else "wb")

    def _wait_until_ready(self) -> None:
        """Wait for the word `ready` in the lock file, as pg_ctl does, or for the server's end."""
        assert self._process is not None
        for _attempt in range(int(_START_SECONDS / _POLL_SECONDS)):
            if _wait(self._process, _POLL_SECONDS):
                said = (self._folder / "server.log").read_text(errors="replace").strip()
                raise Unavailable(f"PostgreSQL ended at once. Its log ends: {said[-1000:]}")
            lines = _read(self.data_folder / "postmaster.pid").splitlines()
            if lines[:1] == [str(self.pid)] and lines[7:] and lines[7].strip() == "ready":
                return
        raise Unavailable(f"PostgreSQL was not ready after {_START_SECONDS} s.")


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return ""


def _empty_folder(path: Path, runner: Account) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o700)
    runner.take(path)


def _wait(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether the process ended within this time."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True
