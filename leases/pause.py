"""Whether somebody has paused reaping: the newest event of the stream `reaping/store`.

In the log, because a pause must outlive every process, be seen by every replica, and say for ever
who asked for it and why. `leases/owner.py` looks twice a second and obeys.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from leases.errors import Unavailable, VersionConflict
from leases.lessor import Caller
from leases.log import EventLog, NewEvent

STREAM = "reaping/store"

# One row, whether or not anything was ever said about reaping.
PAUSE_COLUMNS = """
COALESCE(s.version, 0) AS pause_version, COALESCE(e.type = 'reaping.paused', false) AS paused,
e.actor AS paused_by, e.recorded_at AS paused_at,
(e.data::jsonb) ->> 'reason' AS pause_reason
"""
PAUSE_SOURCE = f"""
(SELECT 1) AS one LEFT JOIN event_streams AS s ON s.stream = '{STREAM}'
LEFT JOIN events AS e ON e.position = s.last_position
"""
_TRIES_MAX = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """What was last said about reaping; `version` grows with every pause and resume."""

    version: int
    paused: bool
    actor: str | None
    reason: str | None
    adopted: bool = False  # The last word: the store is this log's as it is now.

    def __str__(self) -> str:
        return f"paused by {self.actor}: {self.reason}" if self.paused else "not paused"


class Pauses:
    """Reads and writes that stream.

    Errors of all methods: Unavailable.
    """

    def __init__(self, log: EventLog) -> None:
        self._event_log = log

    async def look(self) -> Pause:
        """What was said last."""
        row = await self._event_log.newest(STREAM)
        data = {} if row["data"] is None else json.loads(row["data"])
        return Pause(
            version=row["version"],
            paused=row["type"] == "reaping.paused",
            actor=row["actor"],
            reason=data.get("reason"),
            adopted="adopted_from" in data,
        )

    async def pause(self, *, reason: str, caller: Caller) -> bool:
        """Let no replica begin another batch; answers whether that is news."""

        def said(found: Pause) -> NewEvent | None:
            if found.paused:
                return None
            return NewEvent(
                stream=STREAM,
                type="reaping.paused",
                data={"reason": reason},
                expected_version=found.version,
                actor=caller.actor,
            )

        return await self._say(said)

    async def resume(self, *, caller: Caller, adopted_from: str | None = None) -> bool:
        """Let the replicas reap again; answers whether that is news.

        `adopted_from` names whose mark the store bore: the event then says so in any case.
        """

        def said(found: Pause) -> NewEvent | None:
            if not found.paused and adopted_from is None:
                return None
            return NewEvent(
                stream=STREAM,
                type="reaping.resumed",
                data={} if adopted_from is None else {"adopted_from": adopted_from},
                expected_version=found.version,
                actor=caller.actor,
            )

        return await self._say(said)

    async def _say(self, said: Callable[[Pause], NewEvent | None]) -> bool:
        for _ in range(_TRIES_MAX):
            fact = said(await self.look())
            if fact is None:
                return False
            try:
                await self._event_log.append([fact])
            except VersionConflict:
                continue
            return True
        raise Unavailable("Others pause and resume reaping just now; try again shortly.")
