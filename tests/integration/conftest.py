"""A store, a live gateway, or a folder for one, for each test that asks."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.databases import NewDatabase
from tests.fakes import ListingStore
from tests.integration.commands import Commands
from tests.integration.gateways import LiveGateway, serving, settings_for


@pytest.fixture
def store() -> ListingStore:
    """A host's store that can do everything, in memory."""
    return ListingStore()


@pytest.fixture
async def live_gateway(database_url: str, tmp_path: Path) -> AsyncIterator[LiveGateway]:
    async with serving(settings_for(database_url, tmp_path / "data")) as gateway:
        yield gateway


@pytest.fixture
def commands(new_database: NewDatabase, tmp_path: Path) -> Iterator[Commands]:
    """The command line, on a database and a store of this test's own."""
    with new_database() as url:
        yield Commands(url, tmp_path / "data")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Like tmp_path, but every account may pass through it: PostgreSQL has one of its own."""
    folder = Path(tempfile.mkdtemp(prefix="mpack-gateway-test-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)
