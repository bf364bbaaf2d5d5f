"""Fixtures of the fault tests: processes on a database and a store of this test alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fault.processes import Gateways, gateways_on


@pytest.fixture
async def gateways(database_url: str, tmp_path: Path) -> AsyncIterator[Gateways]:
    async with gateways_on(database_url, tmp_path) as gateways:
        yield gateways
