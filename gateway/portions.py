"""Many things, as many at a time as fit into memory, or into one statement."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def portions(
    items: Iterable[T],
    *,
    weight: Callable[[T], int],
    weight_max: int,
    count_max: int = sys.maxsize,
) -> Iterator[list[T]]:
    """The items in their order, in portions of no more than so much; at least one in each."""
    portion: list[T] = []
    held = 0
    for item in items:
        more = weight(item)
        if portion and (held + more > weight_max or len(portion) >= count_max):
            yield portion
            portion, held = [], 0
        portion.append(item)
        held += more
    if portion:
        yield portion
