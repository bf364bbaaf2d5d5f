"""What fetching tells whoever counts: the port behind the gateway's metrics."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol


class SlotAnswer(StrEnum):
    """What a caller who wanted a shared pack found."""

    HIT = "hit"  # A published pack with life enough.
    JOINED = "joined"  # One that is being built in this process.
    MISS = "miss"  # None: this caller's request took the slot, or waits for another replica's.
    PASSED = "passed"  # None was looked for or kept: built into this caller's answer alone.


class PackObserver(Protocol):
    """Counts what one process does; must cost next to nothing, and raise nothing."""

    def slot_asked(self, answer: SlotAnswer) -> None:
        """A caller looked for a pack to share."""

    def built(self, *, size_bytes: int, seconds: float) -> None:
        """A pack is built and, where it is kept, stored; counted from its turn on."""

    def served(self, size_bytes: int) -> None:
        """A caller was given a pack of this size: its URL, or the bytes themselves."""


class NoPackObserver:
    """Nobody counts."""

    def slot_asked(self, answer: SlotAnswer) -> None: ...

    def built(self, *, size_bytes: int, seconds: float) -> None: ...

    def served(self, size_bytes: int) -> None: ...


NOBODY: PackObserver = NoPackObserver()
