"""Who asks for the same at once: one asks for all, and nobody hears an older answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from gateway.packs.joined import Joined


class Oracle:
    """Answers how often it was asked, each time when it is told to; or fails."""

    def __init__(self) -> None:
        self.asked = 0
        self._turns: list[asyncio.Future[None]] = []

    async def __call__(self) -> int:
        self.asked += 1
        number = self.asked
        turn = asyncio.get_running_loop().create_future()
        self._turns.append(turn)
        await turn
        return number

    async def answers(self, *, failure: Exception | None = None) -> None:
        """Answer the oldest question that waits."""
        await settled()
        self._turns = [turn for turn in self._turns if not turn.done()]
        turn = self._turns.pop(0)
        if failure is None:
            turn.set_result(None)
        else:
            turn.set_exception(failure)
        await settled()


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


Begin = Callable[..., asyncio.Task[int]]


@pytest.fixture
def oracle() -> Oracle:
    return Oracle()


@pytest.fixture
def begin(oracle: Oracle) -> Begin:
    joined = Joined[int]()

    def begin(
        same: str = "same", *, lasting: bool = False, ask: Callable[[], Awaitable[int]] = oracle
    ) -> asyncio.Task[int]:
        return asyncio.get_running_loop().create_task(joined.ask(same, ask, lasting=lasting))

    return begin


async def test_a_crowd_asks_twice(oracle: Oracle, begin: Begin) -> None:
    """The first answer was on its way when the others came; the second was not."""
    crowd = [begin() for _ in range(64)]
    await oracle.answers()
    await oracle.answers()
    assert [await one for one in crowd] == [1] + 63 * [2]
    assert oracle.asked == 2


async def test_who_comes_later_is_told_nothing_older(oracle: Oracle, begin: Begin) -> None:
    first = begin()
    await settled()
    second = begin()
    await oracle.answers()
    third = begin()  # While the second is asking.
    await oracle.answers()
    await oracle.answers()
    assert [await one for one in (first, second, third)] == [1, 2, 3]


async def test_what_cannot_change_is_asked_once(oracle: Oracle, begin: Begin) -> None:
    crowd = [begin(lasting=True) for _ in range(64)]
    await oracle.answers()
    assert {await one for one in crowd} == {1}


async def test_different_questions_do_not_wait_for_each_other(oracle: Oracle, begin: Begin) -> None:
    begun = [begin("one"), begin("other")]
    await settled()
    assert oracle.asked == 2
    await oracle.answers()
    await oracle.answers()
    assert [await one for one in begun] == [1, 2]


async def test_an_error_is_of_who_met_it(oracle: Oracle, begin: Begin) -> None:
    """And the others do not queue up behind each other's time limits."""
    crowd = [begin() for _ in range(3)]
    await oracle.answers(failure=ValueError("mine"))
    assert oracle.asked == 3
    await oracle.answers()
    await oracle.answers()
    with pytest.raises(ValueError, match="mine"):
        await crowd[0]
    assert sorted([await one for one in crowd[1:]]) == [2, 3]


async def test_who_hangs_up_leaves_it_to_the_next(oracle: Oracle, begin: Begin) -> None:
    crowd = [begin() for _ in range(3)]
    await settled()
    crowd[0].cancel()
    await settled()
    assert oracle.asked == 2
    crowd[2].cancel()  # A waiter, whom nobody else waits for.
    await oracle.answers()
    assert await crowd[1] == 2
