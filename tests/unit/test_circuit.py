"""An outage stops what is sent, is probed within a bound, and ends in a ramp."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leases.circuit import Circuit, CircuitState, Turn, is_outage
from leases.errors import BlobMissing, StoreUnavailable
from tests.fakes import FakeClock


def new(clock: FakeClock | None = None, *, width_full: int = 16) -> Circuit:
    clock = clock or FakeClock()
    return Circuit(
        pause_seconds=1, pause_seconds_max=5, monotonic=clock.monotonic, width_full=width_full
    )


def ramping(*, width_full: int = 16) -> Circuit:
    circuit = new(width_full=width_full)
    circuit.opened()
    circuit.probed(answered=True)
    return circuit


def taken(circuit: Circuit, count: int) -> Turn:
    turn = circuit.take(count)
    assert turn is not None
    return turn


def test_it_is_closed_at_first_and_lets_everything_go() -> None:
    circuit = new()
    assert (circuit.state, circuit.wait_seconds()) == (CircuitState.CLOSED, 0)
    assert [taken(circuit, 1000).count for _ in range(3)] == [1000] * 3
    assert (circuit.allowed_ratio, circuit.out_seconds) == (1, 0)


def test_an_outage_stops_everything_for_the_first_pause() -> None:
    clock = FakeClock()
    circuit = new(clock)
    circuit.opened()
    assert (circuit.wait_seconds(), circuit.take(1), circuit.allowed_ratio) == (1, None, 0)
    clock.advance(1)
    assert (circuit.is_open, circuit.wait_seconds(), circuit.out_seconds) == (True, 0, 1)
    assert circuit.take(1) is None, "only a probe may go"


def test_every_failed_probe_doubles_the_pause_up_to_its_bound() -> None:
    clock = FakeClock()
    circuit = new(clock)
    circuit.opened()
    pauses = []
    for _ in range(6):
        pauses.append(circuit.wait_seconds())
        clock.advance(circuit.wait_seconds())
        circuit.probed(answered=False)
    assert pauses == [1, 2, 4, 5, 5, 5]


def test_the_same_outage_seen_by_several_workers_is_one() -> None:
    """Four batches that were under way when the store went say nothing new about it."""
    clock = FakeClock()
    circuit = new(clock)
    for _ in range(4):
        circuit.opened()
        clock.advance(0.1)
    assert circuit.wait_seconds() == pytest.approx(0.6)


def test_after_a_good_probe_each_round_of_answers_lets_twice_as_much_go() -> None:
    circuit = ramping(width_full=16)
    rounds = []
    while circuit.is_ramping:
        turn = taken(circuit, 1000)
        assert circuit.take(1) is None
        rounds.append(turn.count)
        circuit.give_back(turn, answered=True)
    assert rounds == [1, 2, 4, 8]
    assert circuit.state is CircuitState.CLOSED


def test_several_workers_share_what_may_be_under_way() -> None:
    circuit = ramping(width_full=64)
    for _ in range(3):
        circuit.give_back(taken(circuit, 1000), answered=True)
    turns = [taken(circuit, 3), taken(circuit, 3), taken(circuit, 3)]
    assert [turn.count for turn in turns] == [3, 3, 2]
    assert circuit.allowed_ratio == 8 / 64
    for turn in turns:
        circuit.give_back(turn, answered=True)
    assert circuit.allowed_ratio == 16 / 64


def test_what_was_not_answered_widens_nothing() -> None:
    circuit = ramping()
    circuit.give_back(taken(circuit, 5), answered=False)
    assert taken(circuit, 5).count == 1


def test_an_outage_in_the_ramp_goes_on_with_the_pauses() -> None:
    clock = FakeClock()
    circuit = new(clock)
    circuit.opened()
    clock.advance(1)
    circuit.probed(answered=True)
    circuit.opened()
    assert circuit.wait_seconds() == 2
    assert circuit.out_seconds == 1, "it is the same outage"


def test_after_the_ramp_the_next_outage_starts_anew() -> None:
    circuit = ramping(width_full=2)
    circuit.give_back(taken(circuit, 1), answered=True)
    assert circuit.state is CircuitState.CLOSED
    circuit.opened()
    assert circuit.wait_seconds() == 1


def test_what_began_before_the_outage_has_no_say_after_it() -> None:
    """A batch may hang for ten seconds, and would hold up the ramp, or widen it by a thousand."""
    circuit = new(width_full=16)
    old = taken(circuit, 1000)
    circuit.opened()
    circuit.probed(answered=True)
    turn = taken(circuit, 1000)
    circuit.give_back(old, answered=True)
    assert circuit.take(1) is None
    circuit.give_back(turn, answered=True)
    assert taken(circuit, 1000).count == 2


@given(st.lists(st.sampled_from(["take", "good", "bad", "out", "probe", "wait"]), max_size=60))
def test_whatever_happens_no_more_is_under_way_than_may_be(steps: list[str]) -> None:
    clock = FakeClock()
    circuit = new(clock, width_full=8)
    turns: list[Turn] = []
    for step in steps:
        if step == "take" and (turn := circuit.take(3)) is not None:
            turns.append(turn)
        elif step in ("good", "bad") and turns:
            circuit.give_back(turns.pop(0), answered=step == "good")
        elif step == "out":
            circuit.opened()
        elif step == "probe" and circuit.is_open:
            circuit.probed(answered=len(turns) % 2 == 0)
        clock.advance(0.5)
        assert circuit.wait_seconds() <= 5
        assert 0 <= circuit.allowed_ratio <= 1
        assert circuit.is_open == (circuit.take(0) is None and circuit.allowed_ratio == 0)
        if circuit.is_ramping:
            newest = max((turn.round for turn in turns), default=0)
            under_way = sum(turn.count for turn in turns if turn.round == circuit._round)
            assert newest <= circuit._round
            assert under_way <= circuit.allowed_ratio * 8


@pytest.mark.parametrize(
    "error, expected",
    [
        (StoreUnavailable(), True),
        (TimeoutError(), True),
        (ConnectionRefusedError(), True),
        (BlobMissing(), False),
        (RuntimeError(), False),
        (PermissionError(), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_counts_as_an_outage(error: Exception, expected: bool) -> None:
    assert is_outage(error) is expected
