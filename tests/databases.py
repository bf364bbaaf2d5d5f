"""Making and dropping databases for tests, from anywhere: a loop may be running or not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar
from uuid import uuid4

import asyncpg
from sqlalchemy.ext.asyncio import create_async_engine

from gateway.embedded_postgres import EmbeddedPostgres
from schema.migrate import upgrade
from tests.secrecy import check_database

TEMPLATE = "mpack_template"
NewDatabase = Callable[[], AbstractContextManager[str]]
T = TypeVar("T")


def run_apart(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in a loop and a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def make_template(server: EmbeddedPostgres) -> None:
    """Create the template and migrate it to head."""
    run_apart(_execute(server, f"CREATE DATABASE {TEMPLATE}"))
    run_apart(_migrate(server.url(TEMPLATE)))


@contextmanager
def cloned(server: EmbeddedPostgres) -> Iterator[str]:
    """A clone of the template for the time of the block; yields its URL.

    At its end nothing secret may be kept there.
    """
    name = f"test_{uuid4().hex[:12]}"
    run_apart(_execute(server, f"CREATE DATABASE {name} TEMPLATE {TEMPLATE} STRATEGY FILE_COPY"))
    try:
        yield server.url(name)
        run_apart(_check_secrecy(server.url(name)))
    finally:
        run_apart(_execute(server, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))


async def _execute(server: EmbeddedPostgres, sql: str) -> None:
    connection = await asyncpg.connect(driver_url(server.url()))
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


async def _check_secrecy(url: str) -> None:
    connection = await asyncpg.connect(driver_url(url))
    try:
        await check_database(connection)
    finally:
        await connection.close()


async def _migrate(url: str) -> None:
    engine = create_async_engine(url)
    try:
        await upgrade(engine)
    finally:
        await engine.dispose()


def driver_url(url: str) -> str:
    """The same address as asyncpg itself reads it."""
    return url.replace("postgresql+asyncpg://", "postgresql://", 1)
