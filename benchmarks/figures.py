"""A figure, its target, and how the runs of a benchmark become one figure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.place import Place

Run = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number of a benchmark. The median of the runs is reported; `worst`: the highest.

    Units:  `unit` is printed behind the number; an empty one is a plain count.
    """

    label: str
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None
    worst: bool = False

    def over(self, values: Sequence[float]) -> float:
        """The runs as one number."""
        return max(values) if self.worst else statistics.median(values)

    def met(self, value: float) -> bool | None:
        """Whether a value is within the target; None where there is none."""
        if self.at_most is None and self.at_least is None:
            return None
        low = -math.inf if self.at_least is None else self.at_least
        high = math.inf if self.at_most is None else self.at_most
        return low <= value <= high

    @property
    def target(self) -> str:
        """The target in words."""
        unit = f" {self.unit}" if self.unit else ""
        if self.at_most is not None:
            return f"at most {self.at_most:,g}{unit}"
        return "" if self.at_least is None else f"at least {self.at_least:,g}{unit}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """A name, what it measures in a sentence, its figures, and one run of it."""

    name: str
    about: str
    figures: Mapping[str, Figure]
    run: Callable[[Place], Awaitable[Run]]


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]
