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

import structlog

from leases.database import translate
from leases.errors import DatabaseUnavailable, Failure
from leases.ids import new_token
from leases.ledger import Ledger, Session
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

    def __init__(
        self, ledger: Ledger, clock: Clock, *, ping_seconds: float = _PING_SECONDS
    ) -> None:
        self._ledger = ledger.another()
        self._clock = clock
        self._ping_seconds = ping_seconds
        # The driver carries out one statement at a time and refuses a second one.
        self._turn = asyncio.Lock()
        self._listeners: dict[str, list[Listener]] = {}
        self._held: Session | None = None
        self._interrupted = False
        # Called when the session is lost, and when another one stands in its place.
        self.interrupted: Callable[[], None] = lambda: None
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
        if first and self._held is not None:
            await self._add_listener(self._held, channel)

    async def _add_listener(self, session: Session, channel: str) -> None:
        async with self._turn:
            try:
                await session.listen(channel, self._heard)
            except Exception as error:
                if translate(error) is None:
                    raise
                _log.debug("listen_later", channel=channel)  # With the next session.

    def _heard(self, channel: str, payload: str) -> None:
        for listener in self._listeners.get(channel, ()):
            listener(payload)

    async def run(self, *, ready: asyncio.Event) -> None:
        """Hold the lock, and take it again whenever the connection is lost."""
        while True:
            try:
                async with self._session() as lost:
                    ready.set()
                    await self._keep(lost)
            except Exception as error:  # noqa: BLE001  it is made again, whatever ended it
                fields = error.fields if isinstance(error, Failure) else {}
                cause = {"cause": type(error).__name__} | fields
                _log.warning("instance_lock_lost", instance=self.instance_id, **cause)
            ready.set()
            await self._clock.sleep(_RECONNECT_SECONDS)

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[asyncio.Event]:
        lost = asyncio.Event()
        try:
            async with self._ledger.session() as session:
                session.on_end(lost.set)
                self._held = session
                try:
                    for channel in list(self._listeners):
                        await self._add_listener(session, channel)
                    await self._take_lock(session)
                    if self._interrupted:
                        self._interrupted = False
                        self.interrupted()
                    yield lost
                finally:
                    self.is_live = False
                    self._held = None
                    self._interrupted = True
                    self.interrupted()
                    # Closing the socket is what frees the lock and the listeners.
                    session.end()
        finally:
            await self._ledger.close()

    async def _take_lock(self, session: Session) -> None:
        """The server may hold our last session for alive a while longer; then it is asked again."""
        async with self._turn:
            self.is_live = await session.lock(self._lock_key())

    def _lock_key(self) -> int:
        key = int(self.instance_id, 16)
        return key - (1 << 32) if key >= 1 << 31 else key

    async def _keep(self, lost: asyncio.Event) -> None:
        """Return when the connection is gone, or says nothing any more."""
        while not lost.is_set():
            try:
                async with asyncio.timeout(self._ping_seconds):
                    await lost.wait()
            except TimeoutError:
                session = self._held
                assert session is not None
                async with asyncio.timeout(_PING_TIMEOUT_SECONDS):
                    if not self.is_live:
                        await self._take_lock(session)
                    else:
                        async with self._turn:
                            await session.ping()
        raise DatabaseUnavailable(cause="session ended")
