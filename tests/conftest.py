"""Fixtures of every test: Hypothesis profiles, and a PostgreSQL with a fresh database for each.

postgres_server    one server a session (and xdist worker), in a temporary folder
template_database  its name; migrated to head once
new_database       `with new_database() as url:` gives a clone, in Hypothesis examples too
database_url       one such clone, for this test alone
engine             SQLAlchemy's, on that database
database           a `leases.database.Database` on it
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, settings
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from gateway import logs
from gateway.demo.rados_gateway import HOW_TO_GET_IT
from gateway.embedded_postgres import EmbeddedPostgres
from leases.database import Database
from leases.errors import Unavailable
from tests import secrecy
from tests.databases import TEMPLATE, NewDatabase, cloned, make_template
from tests.leasing import another_database
from tests.rgw import NO_S3_SERVER, stop_server

IN_CI = bool(os.environ.get("CI"))
_MEMORY_BYTES_MIN = 4 << 30  # Some servers at once, each with half a gigabyte at most.

# No deadlines: on two busy cores any single example is slow now and then.
_SLOW_IS_FINE = [HealthCheck.too_slow]
settings.register_profile("default", deadline=None, max_examples=50)
settings.register_profile(
    "ci", deadline=None, max_examples=100, print_blob=True, suppress_health_check=_SLOW_IS_FINE
)
settings.register_profile(
    "nightly",
    deadline=None,
    max_examples=5000,
    stateful_step_count=100,
    print_blob=True,
    suppress_health_check=_SLOW_IS_FINE,
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if IN_CI else "default"))


# What mostly waits, or starts whole processes, is run beside its like (see the Makefile).
_APART = ("fault/", "_alarm", "_benchmarks", "_demo", "_dev", "_embed_", "_fetch_memory", "_routes")
# What depends on the store most is run on a real S3 too; `TEST_STORE=s3` runs anything there.
_ON_BOTH_STORES = (
    *("test_cli_gc.py", "test_client.py", "test_fetch_routes.py", "test_lease_routes.py"),
    *("::test_leases_of_a_process_killed", "::test_claims_of_a_killed_process"),
    *("::test_a_store_that_is_away", "::test_every_boundary_of[fetch]"),
)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(secrecy)
    _log_plainly()


def _log_plainly() -> None:
    """Lines as the product writes them: redacted, and tracebacks without local variables."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            logs.redact,
            structlog.dev.ConsoleRenderer(colors=False),
        ]
    )


def pytest_unconfigure() -> None:
    stop_server()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say at the end, where nobody overlooks it, what did not run for want of a server."""
    skipped = terminalreporter.stats.get("skipped", [])
    count = sum(NO_S3_SERVER in str(report.longrepr) for report in skipped)
    if count:
        terminalreporter.section("S3 was not tested", yellow=True, bold=True)
        terminalreporter.line(
            f"{count} tests against a real S3 server were skipped: it is not installed."
        )
        terminalreporter.line(f"To run them on Debian or Ubuntu: {HOW_TO_GET_IT}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if any(part in item.nodeid for part in _APART):
            item.add_marker(pytest.mark.apart)
        if any(part in item.nodeid for part in _ON_BOTH_STORES):
            item.add_marker(pytest.mark.both_stores)
    # The longest begin first, so that none of them is left to run when the others have ended.
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def _memory_folder() -> Path | None:
    """Where files live in memory, if there is room: a database's clone costs less there."""
    memory = Path("/dev/shm")  # Containers often have 64 MB of it.
    roomy = memory.is_dir() and shutil.disk_usage(memory).free >= _MEMORY_BYTES_MIN
    return memory if roomy and os.access(memory, os.W_OK) else None


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[EmbeddedPostgres]:
    """One server for the whole session; it does not wait for the disk.

    Nothing here depends on that: what kills a server starts its own, and no test cuts the power.
    """
    folder = Path(tempfile.mkdtemp(prefix="mpack-gateway-tests-", dir=_memory_folder()))
    folder.chmod(0o711)  # Started by root, the server runs as another account.
    server = EmbeddedPostgres(
        folder / "postgres", settings={"fsync": "off", "max_wal_size": "256MB"}
    )
    try:
        server.start()
    except Unavailable as error:
        if IN_CI:
            raise
        pytest.skip(str(error))
    else:
        yield server
    finally:
        server.remove()
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def template_database(postgres_server: EmbeddedPostgres) -> str:
    make_template(postgres_server)
    return TEMPLATE


@pytest.fixture(scope="session")
def new_database(postgres_server: EmbeddedPostgres, template_database: str) -> NewDatabase:
    return partial(cloned, postgres_server)


@pytest.fixture
def database_url(new_database: NewDatabase) -> Iterator[str]:
    with new_database() as url:
        yield url


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(database_url)
    yield engine
    await engine.dispose()


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with another_database(database_url) as database:
        yield database


@pytest.fixture
def logging_restored() -> Iterator[None]:
    """The process's logging is put back afterwards; other tests read it."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    levels = {
        name: (logging.getLogger(name).level, logging.getLogger(name).disabled)
        for name in (
            "uvicorn.access",
            "apscheduler",
            "sqlalchemy",
            "httpx2",
            "httpcore2",
            "asyncio",
        )
    }
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, (old_level, disabled) in levels.items():
        logging.getLogger(name).setLevel(old_level)
        logging.getLogger(name).disabled = disabled
    structlog.reset_defaults()
    _log_plainly()
