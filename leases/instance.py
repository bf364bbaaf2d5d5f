"""Who is alive: every instance holds a session lock that the server drops with its socket.

The instance's id is random for each start and is the lock's key. A claim made while the lock is
held is named `live.<id>`, and ends as soon as no session holds that lock any more: about a second
after kill -9, not after the claim limit. A claim made without it (no direct connection to the
database, or it has just been lost) is named `free.<id>` and ends at its limit alone.

The same connection listens for notifications.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import structlog

from leases.database import Database
from leases.errors import DatabaseUnavailable
from leases.ids import new_token
from leases.ports import Clock

LOCK_CLASS = 0x6D70  # "mp": the first half of every instance's advisory lock key.
# The names of all instances whose lock is held, as an SQL array.
LIVE_INSTANCES = f"""ARRAY(
    SELECT 'live.' || lpad(to_hex(lock.objid::bigint), 8, '0') FROM pg_locks AS lock
    WHERE lock.locktype = 'advisory' AND lock.classid = {LOCK_CLASS} AND lock.objsubid = 2
      AND lock.database = (SELECT oid FROM pg_database WHERE datname = current_database()))"""

_PING_SECONDS = 5.0
_PING_TIMEOUT_SECONDS = 5.0
_RECONNECT_SECONDS = 0.5

_log = structlog.get_logger(__name__)

Listener = Callable[[str], None]


class Instance:
    """One start of one process. `run()` keeps the lock and the notifications alive."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database.another()
        self._clock = clock
        self._listeners: dict[str, list[Listener]] = {}
        self._driver: asyncpg.Connection[asyncpg.Record] | None = None
        self.instance_id = new_token(4)
        self.is_live = False

    @property
    def claim_name(self) -> str:
        """How this instance signs a claim made now."""
        return f"{'live' if self.is_live else 'free'}.{self.instance_id}"

    async def listen(self, channel: str, listener: Listener) -> None:
        """Call `listener(payload)` for notifications; some may be missed while reconnecting."""
        first = channel not in self._listeners
        self._listeners.setdefault(channel, []).append(listener)
        if first and self._driver is not None and not self._driver.is_closed():
            await self._driver.add_listener(channel, self._heard)

    def _heard(self, _connection: Any, _pid: int, channel: str, payload: object) -> None:
        for listener in self._listeners.get(channel, ()):
            listener(str(payload))

    async def run(self, *, ready: asyncio.Event) -> None:
        """Hold the lock, and take it again whenever the connection is lost."""
        while True:
            try:
                async with self._session() as lost:
                    ready.set()
                    await self._keep(lost)
            except DatabaseUnavailable as failure:
                _log.warning("instance_lock_lost", instance=self.instance_id, **failure.fields)
            ready.set()
            await self._clock.sleep(_RECONNECT_SECONDS)

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[asyncio.Event]:
        lost = asyncio.Event()
        try:
            async with self._database.driver() as driver:
                driver.add_termination_listener(lambda _connection: lost.set())
                self._driver = driver
                for channel in self._listeners:
                    await driver.add_listener(channel, self._heard)
                self.is_live = bool(
                    await driver.fetchval(
                        "SELECT pg_try_advisory_lock($1, $2)", LOCK_CLASS, self._lock_key()
                    )
                )
                try:
                    yield lost
                finally:
                    self.is_live = False
                    self._driver = None
                    # Closing the socket is what frees the lock and the listeners.
                    driver.terminate()
        finally:
            await self._database.close()

    def _lock_key(self) -> int:
        key = int(self.instance_id, 16)
        return key - (1 << 32) if key >= 1 << 31 else key

    async def _keep(self, lost: asyncio.Event) -> None:
        """Return when the connection is gone, or says nothing any more."""
        while not lost.is_set():
            try:
                async with asyncio.timeout(_PING_SECONDS):
                    await lost.wait()
            except TimeoutError:
                driver = self._driver
                assert driver is not None
                async with asyncio.timeout(_PING_TIMEOUT_SECONDS):
                    await driver.execute("SELECT 1")
        raise DatabaseUnavailable(cause="session ended")
