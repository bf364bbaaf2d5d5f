"""Is the store there for fetches and pushes? Known beforehand, so that nobody waits to find out.

Reading and writing have a circuit each: a full or write-protected store still answers inline
fetches. (The reaper has its own; a store may be slow at deletions alone.) A call that failed as in
an outage, or is slow, only raises suspicion; a probe of another blob decides, the store's mark,
which is read, and for writing put again as it is. While a circuit is open, requests that need it
are refused at once, before they reserve or store anything, and only probes are sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from enum import StrEnum
from typing import Protocol

from leases.circuit import Circuit, Turn
from leases.engine import LeaseEngine
from leases.errors import StoreUnavailable
from leases.observe import NOBODY, Observer
from leases.owner import OWNER_KEY
from leases.probe import Probe

# Requests under way: two try a store that is back; with sixteen it has all that builds ask for.
_WIDTH_FIRST = 2
_WIDTH_FULL = 16
_LOOK_SECONDS_MIN = 0.01


class Need(StrEnum):
    """What a request needs of the store; also the circuit's name."""

    READING = "reading"
    WRITING = "writing"


class Admission(Protocol):
    """Whether requests may begin that need the store."""

    def check(self, *needs: Need) -> None:
        """Errors: StoreUnavailable, with `retry_after_seconds`, for what `turn` would refuse."""

    def turn(self, *needs: Need) -> AbstractContextManager[None]:
        """One request, from its first call of the store to its last.

        Errors: StoreUnavailable, at once, while the store is out or is only just back.
        """


class Availability:
    """The circuits of a process's requests. `run()` probes; without it nothing ever opens."""

    def __init__(self, engine: LeaseEngine, *, observer: Observer = NOBODY) -> None:
        self._engine = engine
        self._probes = {
            Need.READING: self._probe(Need.READING, observer),
            Need.WRITING: self._probe(Need.WRITING, observer),
        }
        # A read of a bounded range that takes longer than a probe may is worth one.
        self.slow_seconds = engine.policy.circuit_probe_seconds
        self._suspected = {need: asyncio.Event() for need in Need}
        for probe in self._probes.values():
            probe.found_out = self.suspect_all

    @property
    def circuits(self) -> Mapping[str, Circuit]:
        """Both, by name."""
        return {need.value: probe.circuit for need, probe in self._probes.items()}

    def is_out(self, need: Need) -> bool:
        """Whether the store is known to be out for this."""
        return self._probes[need].circuit.is_open

    # Requests. -----------------------------------------------------------------------------------

    def may(self, *needs: Need) -> bool:
        """Whether a request may begin that needs this."""
        return all(self._probes[need].circuit.has_room for need in needs)

    def check(self, *needs: Need) -> None:
        """Refuse a request that may not begin.

        Errors: StoreUnavailable, with `retry_after_seconds`.
        """
        if not self.may(*needs):
            waits = [self._probes[need].circuit.wait_seconds() for need in needs]
            raise StoreUnavailable(retry_after_seconds=1 + max(waits))

    @contextmanager
    def turn(self, *needs: Need) -> Iterator[None]:
        """One request, from its first call of the store to its last.

        Errors: StoreUnavailable, at once, while the store is out or is only just back.
        """
        self.check(*needs)
        turns: list[tuple[Circuit, Turn]] = []
        for need in needs:
            circuit = self._probes[need].circuit
            turn = circuit.take(1)
            assert turn is not None, "it was looked at a moment ago"
            turns.append((circuit, turn))
        answered = False
        try:
            yield
            answered = True
        finally:
            for circuit, turn in turns:
                circuit.give_back(turn, answered=answered)

    # Suspicion. ----------------------------------------------------------------------------------

    def suspect(self, need: Need) -> None:
        """A call failed as in an outage, or takes long: have the store asked."""
        self._suspected[need].set()

    def suspect_all(self) -> None:
        """The store is out for something: perhaps for everything."""
        for need in Need:
            self.suspect(need)

    async def run(self) -> None:
        """Ask when something is suspected, and probe until the store is back, for ever."""
        self._engine.reaper.probe.found_out = self.suspect_all
        async with asyncio.TaskGroup() as tasks:
            for need in Need:
                tasks.create_task(self._look_after(need))

    async def _look_after(self, need: Need) -> None:
        probe, suspected = self._probes[need], self._suspected[need]
        while True:
            await suspected.wait()
            suspected.clear()
            await probe.answers()
            while not await probe.may_go_on():
                pause = max(_LOOK_SECONDS_MIN, probe.circuit.wait_seconds())
                await self._engine.clock.sleep(pause)

    def _probe(self, need: Need, observer: Observer) -> Probe:
        policy = self._engine.policy
        circuit = Circuit(
            pause_seconds=policy.circuit_pause_seconds,
            pause_seconds_max=policy.circuit_pause_seconds_max,
            monotonic=self._engine.clock.monotonic,
            width_first=_WIDTH_FIRST,
            width_full=_WIDTH_FULL,
        )
        return Probe(
            need.value,
            circuit,
            self._read if need is Need.READING else self._write,
            seconds_max=policy.circuit_probe_seconds,
            observer=observer,
        )

    async def _read(self) -> None:
        await self._engine.store.get(OWNER_KEY)  # That there is none is an answer, too.

    async def _write(self) -> None:
        if self.is_out(Need.READING):
            raise StoreUnavailable  # Whoever cannot be asked for a blob is not sent one.
        await self._engine.owner.touch()


class _AlwaysThere:
    """For whoever needs no circuits."""

    def check(self, *needs: Need) -> None: ...

    @contextmanager
    def turn(self, *needs: Need) -> Iterator[None]:  # noqa: ARG002  the port's form
        yield


ALWAYS_THERE: Admission = _AlwaysThere()
