"""A stopped claimer, in short; `python -m tests.fault.pauses` stops it for five minutes."""

from __future__ import annotations

import pytest

from tests.fault import pauses
from tests.fault.processes import Gateways


@pytest.mark.timeout(180)
async def test_a_claimer_that_wakes_deletes_nothing_early_and_records_nothing_twice(
    gateways: Gateways,
) -> None:
    """Its claims stand until their limit; then the others reap, and it comes too late for all."""
    told = await pauses.run(gateways, seconds=0, claim_limit_seconds=2, seed=7)
    assert told.holds, told
    assert told.held > 0
    assert told.fetches > 0
    assert told.fetches_after > 0
