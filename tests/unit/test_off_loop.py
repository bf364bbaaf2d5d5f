"""Much work leaves the event loop; the ids of a long list come back in order."""

from __future__ import annotations

import hashlib
import threading

import pytest

from gateway.off_loop import off_loop
from gateway.packs.known import _in_order


@pytest.mark.parametrize("much", [True, False])
async def test_only_much_work_goes_to_a_thread(much: bool) -> None:
    assert (await off_loop(threading.get_ident, much=much) != threading.get_ident()) == much


async def test_what_the_work_raises_is_raised_here() -> None:
    with pytest.raises(ZeroDivisionError):
        await off_loop(lambda: 1 // 0, much=True)


@pytest.mark.parametrize("count", [0, 1, 5000])
def test_ids_are_asked_for_in_order(count: int) -> None:
    ids = {hashlib.sha256(b"%d" % number).hexdigest() for number in range(count)}
    assert _in_order(ids) == sorted(ids)
