"""The store itself says whether it is out; one bad blob does not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from leases.circuit import Circuit
from leases.errors import BlobMissing, StoreUnavailable
from leases.probe import Probe
from leases.suspects import Suspects
from tests.fakes import FakeClock

Ask = Callable[[], Awaitable[object]]


class Store:
    """Answers, fails or hangs, and counts the questions."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.asked = 0
        self.hangs: asyncio.Event | None = None

    async def ask(self) -> None:
        self.asked += 1
        if self.hangs is not None:
            await self.hangs.wait()
        if self.error is not None:
            raise self.error


def new(store: Store, clock: FakeClock | None = None) -> Probe:
    clock = clock or FakeClock()
    circuit = Circuit(pause_seconds=1, pause_seconds_max=5, monotonic=clock.monotonic, width_full=4)
    return Probe("testing", circuit, store.ask, seconds_max=0.05)


@pytest.mark.parametrize("error", [None, BlobMissing(), RuntimeError("a 403, say")], ids=repr)
async def test_whatever_it_says_it_is_there(error: Exception | None) -> None:
    probe = new(Store(error))
    assert await probe.answers()
    assert not probe.circuit.is_open


async def test_silence_opens_the_circuit() -> None:
    store = Store()
    store.hangs = asyncio.Event()
    probe = new(store)
    found = []
    probe.found_out = lambda: found.append(True)
    assert not await probe.answers()
    assert (probe.circuit.is_open, found) == (True, [True])


async def test_an_outage_that_is_known_is_not_asked_about() -> None:
    store = Store(StoreUnavailable())
    probe = new(store)
    assert [await probe.answers() for _ in range(4)] == [False] * 4
    assert not await probe.may_go_on()
    assert store.asked == 1


async def test_many_who_ask_at_once_ask_once_while_it_is_out() -> None:
    store = Store(ConnectionRefusedError())
    probe = new(store)
    assert await asyncio.gather(*(probe.answers() for _ in range(8))) == [False] * 8
    assert store.asked == 1


async def test_a_due_probe_is_one_however_many_want_to_go_on() -> None:
    clock, store = FakeClock(), Store(StoreUnavailable())
    probe = new(store, clock)
    await probe.answers()
    clock.advance(1)
    assert await asyncio.gather(*(probe.may_go_on() for _ in range(8))) == [False] * 8
    assert (store.asked, probe.circuit.wait_seconds()) == (2, 2)


async def test_a_good_probe_begins_the_ramp() -> None:
    clock, store = FakeClock(), Store(StoreUnavailable())
    probe = new(store, clock)
    await probe.answers()
    clock.advance(1)
    store.error = None
    assert await probe.may_go_on()
    assert probe.circuit.is_ramping
    assert await probe.may_go_on()
    assert store.asked == 2


def test_suspects_are_bounded_and_cleared() -> None:
    suspects = Suspects()
    suspects.add(str(number) for number in range(20_000))
    assert len(suspects) == 10_000
    assert ("0" in suspects, "19999" in suspects) == (False, True)
    suspects.clear(["19999", "unknown"])
    assert "19999" not in suspects
