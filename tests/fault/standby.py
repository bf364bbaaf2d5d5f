"""A second PostgreSQL that follows the first one, asynchronously, through a proxy of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from gateway.embedded_postgres import SUPERUSER, EmbeddedPostgres
from gateway.postgres_binaries import account, programs
from tests.databases import driver_url
from tests.fault.proxy import DatabaseProxy, proxied
from tests.leasing import connection_to, until

_COPY_SECONDS_MAX = 60


@asynccontextmanager
async def standby_of(
    primary: EmbeddedPostgres, folder: Path
) -> AsyncIterator[tuple[EmbeddedPostgres, DatabaseProxy]]:
    """It, and the proxy that stands between the two: what that loses is not shipped."""
    async with proxied(primary.url()) as (proxy, _url):
        # The standby runs as another account.
        proxy.socket.parent.chmod(0o711)
        proxy.socket.chmod(0o777)
        await asyncio.to_thread(_copy, primary, proxy.socket.parent, folder / "data")
        standby = EmbeddedPostgres(folder, settings={"fsync": "off"})
        try:
            standby.start()
            yield standby, proxy
        finally:
            standby.remove()


def _copy(primary: EmbeddedPostgres, host: Path, target: Path) -> None:
    target.parent.mkdir(mode=0o711)
    runner = account(primary.data_folder)
    target.mkdir(mode=0o700)
    runner.take(target)
    subprocess.run(
        [
            *(programs(runner) / "pg_basebackup", "--pgdata", target, "--write-recovery-conf"),
            *("--wal-method", "stream", "--checkpoint", "fast", "--no-sync"),
            *("--dbname", f"host={host} port=5432 user={SUPERUSER}"),
        ],
        timeout=_COPY_SECONDS_MAX,
        check=True,
        **runner.popen_arguments(),
    )


async def caught_up(primary: EmbeddedPostgres, standby: EmbeddedPostgres) -> None:
    """Wait until the standby has replayed what the primary has written so far."""
    async with (
        connection_to(driver_url(primary.url())) as there,
        connection_to(driver_url(standby.url())) as here,
    ):
        written = await there.fetchval("SELECT pg_current_wal_lsn()::text")

        async def replayed() -> bool:
            return bool(
                await here.fetchval("SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn", written)
            )

        await until(replayed)


async def promote(standby: EmbeddedPostgres) -> None:
    """Return when it takes writes."""
    async with connection_to(driver_url(standby.url())) as connection:
        assert await connection.fetchval("SELECT pg_promote(true)")


@contextmanager
def frozen(server: EmbeddedPostgres) -> Iterator[None]:
    """No process of this server does anything; its sockets stay open."""
    processes = [server.pid, *_children(server.pid)]
    try:
        for pid in processes:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in processes:
            os.kill(pid, signal.SIGCONT)


def _children(parent: int) -> list[int]:
    told = Path(f"/proc/{parent}/task/{parent}/children").read_text()
    return [int(pid) for pid in told.split()]
