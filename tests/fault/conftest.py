"""Fixtures of the fault tests: processes on a database and a store of this test alone."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from gateway.embedded_postgres import EmbeddedPostgres
from tests.fault.processes import Gateways, gateways_on
from tests.fault.servers import own_postgres


@pytest.fixture
async def gateways(database_url: str, tmp_path: Path) -> AsyncIterator[Gateways]:
    async with gateways_on(database_url, tmp_path) as gateways:
        yield gateways


@pytest.fixture
def primary() -> Iterator[EmbeddedPostgres]:
    """A server that may be killed for good; the others' is not touched."""
    with own_postgres() as server:
        yield server


@pytest.fixture
def standby_folder() -> Iterator[Path]:
    """Where a standby may lie: below a folder that its account may pass through."""
    place = Path(tempfile.mkdtemp(prefix="mpack-gateway-standby-"))
    place.chmod(0o711)
    yield place / "postgres"
    shutil.rmtree(place)
