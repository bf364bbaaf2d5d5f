"""The feed under fire, in short; `python -m tests.fault.feed` does it for ten minutes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fault import feed
from tests.fault.feed import Feed, judge
from tests.fault.feeding import Reader
from tests.fault.processes import Gateways

SECONDS = 8
LOG = [{"position": n, "event_id": f"event-{n}", "recorded_at": 100.0} for n in (1, 2, 3)]


def read(*positions: int, **changed: str) -> Reader:
    """A reader to whom these positions came, one after the other."""
    reader = Reader(urls=["http://127.0.0.1:1"], token="")
    for position in positions:
        event_id = changed.get(f"at_{position}", f"event-{position}")
        reader.take({"position": position, "event_id": event_id})
    return reader


@pytest.mark.timeout(180)
async def test_nothing_is_lost_doubled_or_out_of_order(gateways: Gateways) -> None:
    """Whoever is killed, and whatever is cut: a reader that comes back sees the log, no more."""
    told = await feed.run(gateways, seconds=SECONDS, seed=7)
    assert told.holds, told
    assert told.events > 0
    assert told.replicas_killed > 0
    assert told.listeners_cut > 0
    assert told.streams > told.readers  # Some came back, so that there was something to lose.


@pytest.mark.parametrize(
    "reader, found",
    [
        (read(1, 2, 3), {}),
        (read(1, 2), {"lost": 1}),
        (read(1, 3), {"lost": 1, "out_of_order": 1}),
        (read(1, 2, 2, 3), {"doubled": 1, "out_of_order": 1}),
        (read(1, 2, 3, at_2="another"), {"problems": ["another event at 2"]}),
    ],
    ids=["whole", "end-lost", "hole", "twice", "another"],
)
def test_the_judge_sees_what_is_wrong(reader: Reader, found: dict[str, Any]) -> None:
    told = Feed(seed=0)
    judge(told, [reader], LOG)
    assert told.holds == (not found)
    assert {name: getattr(told, name) for name in found} == found
