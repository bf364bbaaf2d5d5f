"""Asks the store itself whether it is out, before anybody believes it and while it is.

A call that failed as in an outage may have failed because of its own blob. So a probe, which is
about another one, decides: only its failure opens the circuit, and only its success closes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from leases.circuit import Circuit, is_outage
from leases.observe import NOBODY, Observer

_log = structlog.get_logger(__name__)


class Probe:
    """One circuit and the question that decides about it, put once at a time.

    `ask` makes one small call of the store; any failure that is no outage counts as an answer.
    `found_out` is called when the circuit opens.
    """

    def __init__(
        self,
        name: str,
        circuit: Circuit,
        ask: Callable[[], Awaitable[object]],
        *,
        seconds_max: float,
        observer: Observer = NOBODY,
    ) -> None:
        self.name = name
        self.circuit = circuit
        self._ask = ask
        self._seconds_max = seconds_max
        self._observer = observer
        self._asking = asyncio.Lock()
        self.found_out: Callable[[], None] = lambda: None

    async def answers(self) -> bool:
        """Whether the store answers now, asked because something was not; opens the circuit."""
        async with self._asking:
            if self.circuit.is_open:
                return False
            if (error := await self._failure()) is None:
                return True
            self.circuit.opened()
            self._observer.circuit_opened(self.name)
            self._tell(error)
        self.found_out()
        return False

    async def may_go_on(self) -> bool:
        """Whether the circuit is not open; an open one is probed when it is time for that."""
        async with self._asking:
            if not self.circuit.is_open:
                return True
            if self.circuit.wait_seconds() > 0:
                return False  # Somebody else has just probed.
            out_seconds = self.circuit.out_seconds
            error = await self._failure()
            self.circuit.probed(answered=error is None)
            if error is not None:
                self._tell(error)
                return False
        _log.info("store_back", circuit=self.name, out_seconds=round(out_seconds, 1))
        return True

    async def _failure(self) -> Exception | None:
        """What the store's silence looks like; None when it says anything."""
        try:
            async with asyncio.timeout(self._seconds_max):
                await self._ask()
        except Exception as error:  # noqa: BLE001  whatever a host's store raises
            out = error if is_outage(error) else None
        else:
            out = None
        self._observer.circuit_probed(self.name, ok=out is None)
        return out

    def _tell(self, error: Exception) -> None:
        _log.warning(
            "store_out",
            circuit=self.name,
            error=type(error).__name__,
            out_seconds=round(self.circuit.out_seconds, 1),
            probed_in_seconds=round(self.circuit.wait_seconds(), 1),
        )
