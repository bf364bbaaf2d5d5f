"""What fetching tells whoever counts: the port behind the gateway's metrics."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol


class SlotAnswer(StrEnum):
    """What a caller who wanted a shared pack found."""

    HIT = "hit"  # A published pack with life enough.
    JOINED = "joined"  # One that is being built in this process.
    MISS = "miss"  # None: this caller's request took the slot, or waits for another replica's.


class PackObserver(Protocol):
    """Counts what one process does; must cost next to nothing, and raise nothing."""

    def slot_asked(self, answer: SlotAnswer) -> None:
        """A caller looked for a pack to share."""

    def built(self, *, size_bytes: int, seconds: float) -> None:
        """A pack stands in the store under an active lease; counted from its turn on."""


class NoPackObserver:
    """Nobody counts."""

    def slot_asked(self, answer: SlotAnswer) -> None: ...

    def built(self, *, size_bytes: int, seconds: float) -> None: ...


NOBODY: PackObserver = NoPackObserver()
