"""An outage stops deletions, and is probed ever more rarely, but within eight seconds."""

from __future__ import annotations

import pytest

from leases.circuit import Circuit, is_outage
from leases.errors import BlobMissing, StoreUnavailable
from tests.fakes import FakeClock


def new(clock: FakeClock) -> Circuit:
    return Circuit(pause_seconds=1, monotonic=clock.monotonic)


def test_it_is_closed_at_first() -> None:
    circuit = new(FakeClock())
    assert (circuit.is_open, circuit.wait_seconds()) == (False, 0)


def test_an_outage_opens_it_for_the_first_pause() -> None:
    clock = FakeClock()
    circuit = new(clock)
    circuit.opened()
    assert circuit.wait_seconds() == 1
    clock.advance(1)
    assert (circuit.is_open, circuit.wait_seconds()) == (True, 0)


def test_every_failed_probe_doubles_the_pause_up_to_eight_seconds() -> None:
    clock = FakeClock()
    circuit = new(clock)
    pauses = []
    for _ in range(6):
        circuit.opened()
        pauses.append(circuit.wait_seconds())
        clock.advance(circuit.wait_seconds())
    assert pauses == [1, 2, 4, 8, 8, 8]


def test_the_same_outage_seen_by_several_workers_is_one() -> None:
    """Four batches that were under way when the store went say nothing new about it."""
    circuit = new(FakeClock())
    for _ in range(4):
        circuit.opened()
    assert circuit.wait_seconds() == 1


def test_an_answer_closes_it_and_the_next_outage_starts_anew() -> None:
    clock = FakeClock()
    circuit = new(clock)
    circuit.opened()
    clock.advance(1)
    circuit.opened()
    circuit.closed()
    assert (circuit.is_open, circuit.wait_seconds()) == (False, 0)
    circuit.opened()
    assert circuit.wait_seconds() == 1


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
