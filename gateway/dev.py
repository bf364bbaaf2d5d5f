"""The gateway with a PostgreSQL and a store of its own, everything in one folder.

    folder/lock          held by the process that serves from here; its content says who and where
    folder/postgres/     the database (see gateway.embedded_postgres)
    folder/store/        the blobs, and the key that signs their URLs
    folder/admin-token   readable by its owner alone, made at the first start
    folder/mpack.env     the settings for the other commands, as long as this one runs

Nothing has to be put right by hand after a crash: the lock is the kernel's, PostgreSQL is ended
with its parent or by the next start, the start-up sweep reaps what fell due meanwhile.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shlex
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from gateway.embedded_postgres import EmbeddedPostgres
from gateway.endings import ended_by_signals, undisturbed
from gateway.settings import Settings, address
from leases.errors import Unavailable

if TYPE_CHECKING:
    import uvicorn

_ROOT_FOLDER = Path("/var/lib/mpack-gateway")
_USER_FOLDER = Path(".local/share/mpack-gateway")
_LOCK_BYTES_MAX = 200
_TOKEN_NAME = "dev"  # noqa: S105  the token's name, not the token


class AlreadyServed(Unavailable):
    """Another process serves from this folder."""

    code = "already_served"


class AddressTaken(Unavailable):
    """Another process listens on this address."""

    code = "address_taken"


def default_folder() -> Path:
    """Where this account keeps such things; root's home is closed to PostgreSQL's account."""
    return _ROOT_FOLDER if os.geteuid() == 0 else Path.home() / _USER_FOLDER


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """What a person needs to know to use it."""

    url: str
    folder: Path
    data_folder: Path
    admin_token: str
    env_file: Path


class DevFolder:
    """The folder of one embedded gateway."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.token_file = self.path / "admin-token"
        self.env_file = self.path / "mpack.env"
        self.postgres = EmbeddedPostgres(self.path / "postgres")

    @contextmanager
    def locked(self) -> Iterator[IO[bytes]]:
        """Hold the folder; the kernel lets go when this process ends, however it ends.

        Errors: AlreadyServed, with what the other process wrote about itself.
        """
        try:
            # PostgreSQL's account must be able to pass through; it cannot list what is here.
            self.path.mkdir(parents=True, exist_ok=True)
            self.path.chmod(0o711)
            lock = (self.path / "lock").open("a+b")
        except OSError as error:
            raise Unavailable(f"{self.path} cannot be used: {error.strerror}.") from error
        with lock:
            _take(lock, self.path)
            lock.truncate(0)
            yield lock
            lock.truncate(0)

    def admin_token(self) -> str | None:
        """The token of an earlier start."""
        try:
            return self.token_file.read_text().strip() or None
        except FileNotFoundError:
            return None

    def keep_admin_token(self, secret: str) -> None:
        """Write it whole or not at all, for its owner alone."""
        _write_private(self.token_file, secret + "\n")

    def settings(self, *, host: str, port: int) -> Settings:
        """The environment's settings with this folder's database and store."""
        return Settings.from_environment(**self._overrides(host, port))

    def write_env_file(self, settings: Settings) -> None:
        """What `set -a; . mpack.env` needs so that the other commands find this gateway, and its
        bucket, if it was given one: a sweep of the wrong store would record what it did not do.
        """
        told = self._overrides(settings.host, settings.port) | settings.s3.told()
        lines = [f"MPACK_{name.upper()}={shlex.quote(text)}\n" for name, text in told.items()]
        _write_private(self.env_file, "".join(lines))

    def _overrides(self, host: str, port: int) -> dict[str, str]:
        return {
            "database_url": self.postgres.url(),
            "data_dir": str(self.path / "store"),
            "host": host,
            "port": str(port),
            "public_url": address(host, port),
        }


def serve(path: Path, *, host: str, port: int, announce: Callable[[Running], None]) -> None:
    """Serve until SIGINT or SIGTERM; afterwards nothing of it runs.

    Effects: `announce` is called once, when requests are answered.
    Errors:  AlreadyServed, AddressTaken, Unavailable from PostgreSQL; SettingsInvalid.
    """
    folder = DevFolder(path)
    # This is how one ends it; nothing has failed.
    with ended_by_signals(code=0), folder.locked() as lock, _listening(host, port) as listening:
        port = listening.getsockname()[1]
        lock.write(f"process {os.getpid()} at {address(host, port)}".encode())
        lock.flush()
        try:
            folder.postgres.start()
            settings = folder.settings(host=host, port=port)
            folder.write_env_file(settings)
            asyncio.run(_serve(folder, settings, listening, announce=announce))
        finally:
            with undisturbed():
                folder.postgres.stop()
                folder.env_file.unlink(missing_ok=True)


async def _serve(
    folder: DevFolder,
    settings: Settings,
    listening: socket.socket,
    *,
    announce: Callable[[Running], None],
) -> None:
    from gateway.cli.serve import make_server

    token = await _prepare(folder, settings)
    running = Running(
        url=settings.base_url,
        folder=folder.path,
        data_folder=folder.postgres.data_folder,
        admin_token=token,
        env_file=folder.env_file,
    )
    server = make_server(settings)
    async with asyncio.TaskGroup() as tasks:
        announcing = tasks.create_task(_announce(server, running, announce))
        try:
            await server.serve(sockets=[listening])
        finally:
            announcing.cancel()
    if not server.started:
        raise Unavailable("The gateway did not start; its log says why.")


async def _prepare(folder: DevFolder, settings: Settings) -> str:
    """Migrate, and make the admin token unless there is one that this database knows."""
    from gateway.auth import Scope, Tokens
    from gateway.errors import Unauthorized
    from gateway.service import make_engine
    from leases.database import Database
    from schema import migrate

    database = Database(make_engine(settings.database_url, settings))
    try:
        await migrate.upgrade(database.engine)
        tokens, kept = Tokens(database), folder.admin_token()
        if kept is not None:
            try:
                await tokens.verify(kept)
                return kept
            except Unauthorized:
                pass  # Revoked, or the database was deleted: this folder makes another one.
        issued = await tokens.create(name=_TOKEN_NAME, scopes=[Scope.ADMIN])
        folder.keep_admin_token(issued.secret)
        return issued.secret
    finally:
        await database.close()


async def _announce(
    server: uvicorn.Server, running: Running, announce: Callable[[Running], None]
) -> None:
    from leases.clock import SystemClock

    clock = SystemClock()
    while not server.started:  # Ends with the start, or by being cancelled after a failed one.
        await clock.sleep(0.02)
    announce(running)


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    from gateway.cli.serve import listening_socket

    try:
        listening = listening_socket(host, port)
    except OSError as error:
        reason = error.strerror or str(error)
        raise AddressTaken(f"{host}:{port} cannot be listened on: {reason}.") from error
    with listening:
        yield listening


def _take(lock: IO[bytes], folder: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        who = lock.read(_LOCK_BYTES_MAX).decode(errors="replace") or "another process"
        raise AlreadyServed(f"{folder} is already served by {who}.") from error


def _write_private(path: Path, text: str) -> None:
    making = path.with_name(path.name + ".new")
    making.unlink(missing_ok=True)
    handle = os.open(making, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    making.replace(path)
