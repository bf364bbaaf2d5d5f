"""Kill -9 at every effect that the machinery has on the world: nothing is left over or doubled.

The boundaries are found, not listed (tests/fault/effects.py). `make nightly ARGS=crashes` takes
every side of each, and pairs: a crash, and another one in the recovery from it.
"""

from __future__ import annotations

import pytest

from tests.fault.crash_points import crash_site, single_points
from tests.fault.crashing import SCENARIOS
from tests.fault.effects import written_by

APPEND = "append_events"
CLAIM = "UPDATE mpack_leases"
# What each scenario does, in order: the row before the blob, the claim before the deletion.
ORDER = {
    "fetch": ["INSERT INTO pack_slots", APPEND, "put", APPEND, "UPDATE pack_slots", "presign"],
    "share": [APPEND, "presign"],
    "revoke": [APPEND, CLAIM, "delete_many", APPEND],
    "reap": [CLAIM, "abort", "delete_many", APPEND],
    "fail": [CLAIM, "delete_many", APPEND, CLAIM],
    "outage": [CLAIM, "delete_many", "delete_many", CLAIM],
    "reconcile": [
        *("put", APPEND, "delete", APPEND, APPEND, CLAIM, "abort", "delete_many", APPEND)
    ],
    "upload": [APPEND, "presign", "presign"],
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("scenario", ORDER)
async def test_every_boundary_of(database_url: str, scenario: str) -> None:
    async with crash_site(database_url) as site:
        effects = await site.effects(scenario)
        assert sorted(effect.name for effect in effects) == sorted(ORDER[scenario])
        if scenario != "reconcile":  # It goes by the store's listing, which is in no order.
            assert [effect.name for effect in effects] == ORDER[scenario]
        for point in single_points(effects, every=False):
            await site.crash(scenario, point)
            await site.recover()


def test_every_scenario_is_crashed() -> None:
    assert set(SCENARIOS) - {"recover"} == set(ORDER)


@pytest.mark.parametrize(
    "sql, written",
    [
        ("SELECT verdicts FROM append_events($1)", "append_events"),
        ("SELECT FROM event_head WHERE id = 1 FOR UPDATE", None),
        ("WITH due AS (SELECT 1 FOR UPDATE SKIP LOCKED)\nUPDATE mpack_leases AS l SET x", CLAIM),
        ("COMMIT;", "COMMIT"),
        ("INSERT INTO pack_slots (a) VALUES (1)", "INSERT INTO pack_slots"),
        ("SELECT clock_timestamp()", None),
        ("ROLLBACK", None),
    ],
)
def test_a_statement_that_writes_is_known(sql: str, written: str | None) -> None:
    assert written_by(sql) == written
