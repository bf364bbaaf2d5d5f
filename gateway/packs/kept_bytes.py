"""How much the transient prefix holds, against the budget for what nobody was promised.

Optional is what only those gain from who come later: to store an inline pack for them, and to let
a renewed lease live on beyond the promise that made it necessary. Above the budget both stop. What
was promised is kept all the same, and nothing is deleted early: packs behind URLs are built, leased
and shared as ever. So the budget bounds a habit, not the bytes.
"""

from __future__ import annotations

import structlog

from leases.engine import LeaseEngine
from leases.errors import Failure
from leases.stats import read_bytes_held

_LOOK_SECONDS = 5.0
# The sum takes a fifth of a second at a million open leases: so a tenth of the time is the most.
_PAUSE_PER_SECOND_ASKED = 10.0
# A renewal for each request of a hot pack would fill the log: twenty in a TTL at most.
_RENEW_FACTOR_BEYOND = 1.05

_log = structlog.get_logger(__name__)


class KeptBytes:
    """Looks now and then at what all open leases hold; without a budget, never.

    Units:   budget_bytes: 0 for none.
    """

    def __init__(self, engine: LeaseEngine, *, budget_bytes: int) -> None:
        self._engine = engine
        self._budget_bytes = budget_bytes
        self._bytes_held = 0

    def has_room(self) -> bool:
        """Whether what nobody was promised may be kept."""
        return self._budget_bytes == 0 or self._bytes_held < self._budget_bytes

    def renew_factor(self) -> float:
        """How many TTLs a renewed lease lives from then on; always more than the one promised."""
        factor = self._engine.policy.renew_factor
        return factor if self.has_room() else min(factor, _RENEW_FACTOR_BEYOND)

    async def look(self) -> None:
        """Ask the database. Errors: DatabaseUnavailable."""
        had_room = self.has_room()
        self._bytes_held = await read_bytes_held(self._engine.database)
        told = {"bytes_held": self._bytes_held, "budget_bytes": self._budget_bytes}
        if had_room and not self.has_room():
            _log.info("transient_bytes_beyond_budget", **told)
        elif self.has_room() and not had_room:
            _log.info("transient_bytes_within_budget", **told)

    async def run(self) -> None:
        """Look for ever, while there is a budget; what was seen last stands while none is told."""
        clock = self._engine.clock
        while self._budget_bytes:
            began = clock.monotonic()
            try:
                await self.look()
            except Failure as failure:
                _log.warning("transient_bytes_not_read", error=failure.code)
            took = clock.monotonic() - began
            await clock.sleep(max(_LOOK_SECONDS, _PAUSE_PER_SECOND_ASKED * took))
