"""A statement gets lost on its way, or its answer does: afterwards all is as if nothing had been.

A lost answer and an undelivered statement look alike to whoever waits; so every statement of a
lease's life must be safe to send again.
"""

from __future__ import annotations

import asyncio
import socket

import pytest
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from leases.database import Database
from leases.engine import LeaseEngine
from leases.errors import DatabaseUnavailable
from leases.model import Trigger
from tests.fakes import ListingStore
from tests.fault.proxy import Fault, FaultKind, proxied
from tests.invariants import check_invariants
from tests.leasing import (
    BLOB,
    BLOB_SHA256,
    CALLER,
    another_database,
    engine_on,
    loaded,
    reserved,
    types_of,
    until,
)

APPEND = b"append_events"
STATEMENTS = {
    "reserve": (APPEND, b"lease.reserved"),
    "activate": (APPEND, b"lease.activated"),
    "renew": (APPEND, b"lease.renewed"),
    "revoke": (APPEND, b"lease.revoked"),
    "claim": (b"SET claimed_by = $2", b""),
    "record": (APPEND, b"lease.reclaimed"),
}
WHOLE_LIFE = ["reserved", "activated", "renewed", "revoked", "reclaimed"]


async def a_life(engine: LeaseEngine) -> None:
    """A lease from its reservation to its end, by somebody who does not give up."""
    lease = await reserved(engine)
    await engine.store.put(lease.storage_key, BLOB)
    activation = {"sha256": BLOB_SHA256, "size_bytes": len(BLOB), "ttl_seconds": 60}
    await engine.lessor.activate(lease.mpack_id, caller=CALLER, **activation)  # type: ignore[arg-type]
    await engine.lessor.renew(lease.mpack_id, ttl_seconds=120, caller=CALLER)
    await engine.lessor.revoke(lease.mpack_id, reason="wanted", caller=CALLER)

    async def reaped() -> bool:
        try:
            await engine.reaper.sweep(Trigger.COMMAND)
        except DatabaseUnavailable:
            await engine.reaper._release()
        return (await loaded(engine, lease)).reclaimed_at is not None

    await until(reaped)
    ended = await loaded(engine, lease)
    assert await types_of(engine, ended) == [f"lease.{name}" for name in WHOLE_LIFE]
    assert ended.version == len(WHOLE_LIFE)
    assert (ended.state, ended.sha256, ended.outcome) == ("reclaimed", BLOB_SHA256, "deleted")


@pytest.mark.parametrize("kind", FaultKind, ids=lambda kind: kind.value)
@pytest.mark.parametrize("name", STATEMENTS)
async def test_the_end_is_the_same_as_without_it(
    database_url: str, name: str, kind: FaultKind
) -> None:
    store = ListingStore()
    sql, bound = STATEMENTS[name]
    async with proxied(database_url) as (proxy, url), another_database(url) as database:
        async with engine_on(database, store) as engine:
            proxy.fault = Fault(kind=kind, sql=sql, bound=bound)
            await a_life(engine)
            assert proxy.fault.happened.is_set()
        await check_invariants(database, store)


async def test_without_a_fault_it_ends_like_that(database: Database) -> None:
    async with engine_on(database, ListingStore()) as engine:
        await a_life(engine)
    await check_invariants(database, engine.store)


async def revoke_the_rest(engine: LeaseEngine) -> None:
    """Of a life that a cut ended early."""
    rows = await engine.database.fetch(
        "SELECT mpack_id FROM mpack_leases WHERE state <> 'reclaimed'"
    )
    for row in rows:
        await engine.lessor.revoke(row["mpack_id"], reason="the end", caller=CALLER)
    await engine.reaper.sweep(Trigger.COMMAND)


@pytest.mark.parametrize("held", [False, True], ids=["from the pool", "held"])
async def test_a_connection_that_fell_silent_is_given_to_nobody_else(
    database_url: str, held: bool
) -> None:
    """The host of the old primary is gone for good, and the new one answers."""
    async with proxied(database_url) as (proxy, url):
        engine = create_async_engine(url)
        database = Database(engine, statement_seconds_max=0.5)
        way = database.held() if held else database
        await way.fetch("SELECT 1")
        proxy.silence()
        with pytest.raises(DatabaseUnavailable):
            await way.fetch("SELECT 1")
        assert await way.fetch("SELECT 1")
        await way.close()
        await database.close()
        await engine.dispose()


async def test_a_host_that_dies_is_noticed(database_url: str) -> None:
    """Without keep-alives who waits for its answer would wait for ever."""
    async with proxied(database_url) as (proxy, _url):
        server = await asyncio.start_server(proxy.handle, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        url = make_url(database_url).set(host=host, port=port, query={})
        async with (
            another_database(url.render_as_string(hide_password=False)) as database,
            database.driver() as driver,
        ):
            own = driver._transport.get_extra_info("socket")  # type: ignore[attr-defined]  # private
            assert own.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) < 60
        server.close()


async def test_cut_connections_are_made_again(database_url: str) -> None:
    store = ListingStore()
    async with proxied(database_url) as (proxy, url), another_database(url) as database:
        async with engine_on(database, store) as engine:
            await a_life(engine)
            proxy.cut()

            async def works_again() -> bool:
                try:
                    await a_life(engine)
                except DatabaseUnavailable:
                    return False
                return True

            await until(works_again)
            await revoke_the_rest(engine)
        await check_invariants(database, store)
