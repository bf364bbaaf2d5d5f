"""A little of what the nightly sends much of: no 5xx, nothing lost, memory bounded."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import fuzz
from tests.stores import ON_S3


@pytest.mark.skipif(ON_S3, reason="it is the gateway's own inside that is looked for faults")
async def test_no_request_breaks_anything(database_url: str, tmp_path: Path) -> None:
    found = await fuzz(database_url, tmp_path / "data", seed=1, count=2000, large_every=1000)
    assert not found.failures, "\n".join(found.failures)
    assert found.statuses["200"] > 100
    assert sum(found.statuses[one] for one in ("400", "404", "413", "422")) > 300
