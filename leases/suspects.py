"""Leases whose deletion failed as in an outage while the store answered for others."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

# About 1 MB. One that is forgotten costs its batch another time limit, no more.
_REMEMBERED_MAX = 10_000


class Suspects:
    """Remembered by this process alone: these are tried by themselves, apart from the others.

    One blob can make a whole batch fail; tried alone it cannot, and its failure is its own.
    """

    def __init__(self) -> None:
        self._ids: OrderedDict[str, None] = OrderedDict()

    def __contains__(self, mpack_id: str) -> bool:
        return mpack_id in self._ids

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, mpack_ids: Iterable[str]) -> None:
        """Remember these; the oldest are forgotten when they are too many."""
        self._ids.update(dict.fromkeys(mpack_ids))
        while len(self._ids) > _REMEMBERED_MAX:
            self._ids.popitem(last=False)

    def clear(self, mpack_ids: Iterable[str]) -> None:
        """These are gone."""
        for mpack_id in mpack_ids:
            self._ids.pop(mpack_id, None)
