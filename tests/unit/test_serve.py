"""What the command does before it serves."""

from __future__ import annotations

import gc

from gateway.cli.serve import settle_heap


def test_what_lives_for_ever_is_not_gone_through_again() -> None:
    kept: list[object] = [[]]
    settle_heap()
    try:
        later: list[object] = [[]]
        gone_through = {id(one) for one in gc.get_objects()}
    finally:
        gc.unfreeze()
    assert id(later) in gone_through
    assert id(kept) not in gone_through
