"""A pool of our own on somebody's engine, and what a driver's error means.

Hot statements go to asyncpg itself as autocommit statements; the rest goes through SQLAlchemy's
`engine`. Nothing here holds one connection while it asks for another, so that a pool of a single
connection is enough.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

import asyncpg
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, InvalidatePoolError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.util import greenlet_spawn

from leases.errors import DatabaseRefused, DatabaseUnavailable
from leases.observe import NOBODY, Observer

# On every connection that may append, so that nobody sits on the head of the log.
_SESSION_SETTINGS = (
    "SET lock_timeout = '2s'; SET idle_in_transaction_session_timeout = '2s'; SET TimeZone = 'UTC'"
)
# A statement of ours takes milliseconds; a database silent for this long counts as gone.
STATEMENT_SECONDS_MAX = 30.0
TURN_SECONDS_MAX = 10.0

# A host that dies says nothing, and who waits for its answer would wait for ever. The first limits
# are for a host that took what was sent, the other is for one that does not even do that.
_SILENT_SECONDS = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
_UNTAKEN_MS_MAX = 30_000

_OUTAGES: tuple[type[BaseException], ...] = (
    OSError,
    TimeoutError,
    PoolTimeout,
    asyncpg.InterfaceError,
    # What asyncpg says of a connection that the server ended while nobody was using it.
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.exceptions.OperatorInterventionError,
    asyncpg.exceptions.InsufficientResourcesError,
    asyncpg.exceptions.LockNotAvailableError,
    asyncpg.exceptions.DeadlockDetectedError,
    asyncpg.exceptions.SerializationError,
    asyncpg.exceptions.ReadOnlySQLTransactionError,
    asyncpg.exceptions.IdleInTransactionSessionTimeoutError,
)
_REFUSALS: tuple[type[BaseException], ...] = (
    asyncpg.exceptions.InvalidAuthorizationSpecificationError,
    asyncpg.exceptions.InvalidCatalogNameError,
    asyncpg.exceptions.InsufficientPrivilegeError,
    # A database that takes no connections, as somebody works on it.
    asyncpg.exceptions.ObjectNotInPrerequisiteStateError,
)


def translate(error: BaseException) -> DatabaseUnavailable | None:
    """What a driver's error means to a caller; None where it is a bug of ours."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, _REFUSALS):
            return DatabaseRefused(cause=str(seen))
        if isinstance(seen, _OUTAGES):
            return DatabaseUnavailable(cause=type(seen).__name__)
        seen = seen.orig if isinstance(seen, DBAPIError) else seen.__cause__
    return None


@contextmanager
def translated() -> Iterator[None]:
    """Tell what a driver's error in the block means. Errors: DatabaseUnavailable."""
    try:
        yield
    except Exception as error:
        if (failure := translate(error)) is not None:
            raise failure from error
        raise


def rows_touched(status: str) -> int:
    """How many rows a statement touched, from its command tag such as `UPDATE 3`."""
    count = status.rpartition(" ")[2]
    return int(count) if count.isdigit() else 0


def _watch_host(connection: Any, _entry: ConnectionPoolEntry) -> None:
    transport = connection.driver_connection._transport  # noqa: SLF001  asyncpg has no other way
    socket_ = transport.get_extra_info("socket")
    if socket_.family == socket.AF_UNIX:
        return
    socket_.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (*_SILENT_SECONDS.items(), ("TCP_USER_TIMEOUT", _UNTAKEN_MS_MAX)):
        if (option := getattr(socket, name, None)) is not None:  # Not every system has them all.
            socket_.setsockopt(socket.IPPROTO_TCP, option, value)


def _settle_session(connection: Any, _entry: ConnectionPoolEntry) -> None:
    connection.run_async(lambda driver: driver.execute(_SESSION_SETTINGS))


def _refuse_closed(connection: Any, _entry: ConnectionPoolEntry, _proxy: Any) -> None:
    """After a restart of the database every pooled connection is dead: nobody shall get one."""
    if connection.driver_connection.is_closed():
        raise InvalidatePoolError


class Database:
    """Our own connections to the database that `engine` points at.

    Errors: DatabaseUnavailable when it does not answer; other driver errors are bugs and pass.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        observer: Observer = NOBODY,
        statement_seconds_max: float = STATEMENT_SECONDS_MAX,
    ) -> None:
        self._observer = observer
        self._statement_seconds_max = statement_seconds_max
        # A recreated pool shares the host's connect arguments and none of its connections.
        pool = engine.sync_engine.pool.recreate()
        event.listen(pool, "connect", _watch_host)
        event.listen(pool, "connect", _settle_session)
        event.listen(pool, "checkout", _refuse_closed)
        self.engine = create_async_engine(engine.url, pool=pool)

    def another(self) -> Database:
        """A second pool, for a connection that is held for long."""
        return self._like(Database)

    def held(self) -> Database:
        """A connection that is kept from statement to statement; its users take turns."""
        return self._like(HeldDatabase)

    def _like(self, kind: type[Database]) -> Database:
        return kind(
            self.engine,
            observer=self._observer,
            statement_seconds_max=self._statement_seconds_max,
        )

    async def close(self) -> None:
        """Close every connection."""
        await self.engine.dispose()

    @asynccontextmanager
    async def driver(self) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
        """The bare asyncpg connection, autocommit; a broken one does not go back to the pool."""
        try:
            # Not `engine.connect()`: an AsyncConnection runs a task to give its connection back.
            lent = await self.engine.raw_connection()
            driver = lent.driver_connection
            assert driver is not None
            try:
                yield driver
            except BaseException as error:
                if isinstance(error, TimeoutError):
                    # Silent for so long: it would be as silent to whoever had it next.
                    driver.terminate()
                # An interrupted statement leaves the session in an unknown state.
                lost = driver.is_closed() or isinstance(error, asyncpg.InternalClientError)
                if lost or driver.is_in_transaction():
                    await greenlet_spawn(lent.invalidate)
                raise
            finally:
                await greenlet_spawn(lent.close)
        except Exception as error:
            if (failure := translate(error)) is not None:
                raise failure from error
            raise

    async def fetch(self, sql: str, *args: Any) -> list[asyncpg.Record]:
        """All rows of one autocommit statement."""
        with self._timed():
            async with self.driver() as driver, asyncio.timeout(self._statement_seconds_max):
                return await driver.fetch(sql, *args)

    async def fetchrow(self, sql: str, *args: Any) -> asyncpg.Record | None:
        """The first row of one autocommit statement."""
        rows = await self.fetch(sql, *args)
        return rows[0] if rows else None

    async def row(self, sql: str, *args: Any) -> asyncpg.Record:
        """The first row of one autocommit statement that always has one."""
        row = await self.fetchrow(sql, *args)
        assert row is not None, "this statement always answers with a row"
        return row

    async def execute(self, sql: str, *args: Any) -> int:
        """Run one autocommit statement; answers how many rows it touched."""
        with self._timed():
            async with self.driver() as driver, asyncio.timeout(self._statement_seconds_max):
                status = await driver.execute(sql, *args)
        return rows_touched(status)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Tell the observer how long it took, waiting for a connection included."""
        clock = asyncio.get_running_loop().time
        began, ok = clock(), False
        try:
            yield
            ok = True
        finally:
            self._observer.database_call(clock() - began, ok=ok)


class HeldDatabase(Database):
    """One connection, given back only when it fails; one statement at a time.

    Taking a connection from the pool and giving it back costs more than a small statement
    (`make bench ARGS=appends`). Who has to wait for the others waits no longer than for a pool.
    """

    def __init__(self, engine: AsyncEngine, **options: Any) -> None:
        super().__init__(engine, **options)
        self._driver: asyncpg.Connection[asyncpg.Record] | None = None
        self._holding = AsyncExitStack()
        self._turn = asyncio.Lock()

    async def close(self) -> None:
        await self._holding.aclose()
        await super().close()

    @asynccontextmanager
    async def driver(self) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
        await self._take_turn()
        try:
            if self._driver is None or self._driver.is_closed():
                await self._holding.aclose()
                self._driver = await self._holding.enter_async_context(super().driver())
            yield self._driver
        except BaseException:
            self._driver = None
            # The pool decides what becomes of the connection, and says what the error means.
            await self._holding.__aexit__(*sys.exc_info())
            raise
        finally:
            self._turn.release()

    async def _take_turn(self) -> None:
        try:
            async with asyncio.timeout(TURN_SECONDS_MAX):
                await self._turn.acquire()
        except TimeoutError as error:
            raise DatabaseUnavailable(cause=type(error).__name__) from error
