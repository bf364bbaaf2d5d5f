"""Which packs were asked for before, lately: what is asked for once need not be kept.

The rule is that of TinyLFU's doorkeeper (Einziger, Friedman, Manes: TinyLFU, 2017): nothing is
admitted at first sight, and first sights are forgotten wholesale. There a Bloom filter stands
before millions of keys; here so few are asked for within a window that two plain generations hold
them, without false positives. Each process remembers for itself: forgetting costs one more build.
"""

from __future__ import annotations

_KEYS_MAX = 10_000  # In each generation; about 2 MB.


class Doorkeeper:
    """Remembers keys for at least half the window and at most all of it; fewer when many come.

    Units:   now: seconds of a monotonic clock. A window of zero remembers nothing.
    """

    def __init__(self, window_seconds: float, *, keys_max: int = _KEYS_MAX) -> None:
        self._half_seconds = window_seconds / 2
        self._keys_max = keys_max
        self._began = -float("inf")
        self._young: dict[str, int] = {}
        self._old: dict[str, int] = {}

    def knock(self, key: str, now: float) -> None:
        """Somebody asks for this key."""
        self._age(now)
        if self._half_seconds > 0:
            self._young[key] = self._young.get(key, 0) + 1

    def asked_again(self, key: str, now: float) -> bool:
        """Whether somebody asks for this key, and somebody did before."""
        self._age(now)
        return self._young.get(key, 0) + self._old.get(key, 0) > 1

    def __len__(self) -> int:
        """How many keys are remembered; at most twice `keys_max`."""
        return len(self._young.keys() | self._old.keys())

    def _age(self, now: float) -> None:
        passed = now - self._began
        if passed >= 2 * self._half_seconds:
            self._young, self._old, self._began = {}, {}, now
        elif passed >= self._half_seconds or len(self._young) >= self._keys_max:
            self._young, self._old, self._began = {}, self._young, now
