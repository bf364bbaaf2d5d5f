"""Which keys were seen, in sixteen mebibytes whatever their number.

A Bloom filter: a key that was seen is always known; one that was not is taken for a seen one now
and then: of a million keys' strangers one in 1.3 million, of ten million's one in 230. Each set
has a salt of its own, so that who looks again with another set is not deceived by the same key.
"""

from __future__ import annotations

from mmap import mmap

from leases.ids import new_token

_BITS = 1 << 27  # Chosen so that a few million keys are hardly ever mistaken.
_BITS_OF_A_KEY = 4
_HALF = (1 << 32) - 1


class SeenKeys:
    """A set of keys that only grows."""

    def __init__(self, *, bits: int = _BITS) -> None:
        self._salt = new_token(8)
        self._count = bits
        # Pages that no key falls on are never there.
        self._bits = mmap(-1, bits // 8)

    def add(self, key: str) -> None:
        """From now on it is known."""
        for place in self._places(key):
            self._bits[place >> 3] |= 1 << (place & 7)

    def __contains__(self, key: str) -> bool:
        return all(self._bits[place >> 3] >> (place & 7) & 1 for place in self._places(key))

    def close(self) -> None:
        """Give the memory back."""
        self._bits.close()

    def _places(self, key: str) -> list[int]:
        """Of two independent numbers as many as are needed (Kirsch and Mitzenmacher, 2006)."""
        found = hash((self._salt, key))
        first, step = found & _HALF, (found >> 32 & _HALF) | 1
        return [(first + time * step) % self._count for time in range(_BITS_OF_A_KEY)]
