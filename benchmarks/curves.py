"""Figures at 1, 10 and 100 times of something, as a table and as a drawing. Pure.

Shapes:  figures: as a result keeps them, with keys `<work>_<dimension>_<times>` and, for the last
         to the first, `<work>_<dimension>_ratio`; works and dimensions: key -> words.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

Figures = Mapping[str, Mapping[str, Any]]

_PANEL, _GAP, _HEIGHT = 280, 60, 260
_LEFT, _TOP, _LEGEND_ROW = 50, 40, 20
# Told apart by lightness as well as by hue: some readers see no hue, and some print.
_COLOURS = ("#1b4f9c", "#c0392b", "#1e8449", "#7d3c98", "#b9770e", "#2e86ab", "#808080")


def table(
    figures: Figures,
    works: Mapping[str, str],
    dimensions: Mapping[str, str],
    *,
    times: Sequence[int],
) -> list[str]:
    """A row for each work, a column for each dimension: every figure, and the last to the first."""
    shown = " · ".join(map(str, times))
    lines = [
        f"| p50 in ms at {shown} times | " + " | ".join(dimensions.values()) + " |",
        "|---|" + "---|" * len(dimensions),
    ]
    for work, words in works.items():
        cells = []
        for dimension in dimensions:
            found = [figures[f"{work}_{dimension}_{one}"]["value"] for one in times]
            ratio = figures[f"{work}_{dimension}_ratio"]["value"]
            cells.append(" · ".join(f"{one:.3g}" for one in found) + f" (**{ratio:.3g} times**)")
        lines.append(f"| {words} | " + " | ".join(cells) + " |")
    return lines


def drawing(
    figures: Figures,
    works: Mapping[str, str],
    dimensions: Mapping[str, str],
    *,
    times: Sequence[int],
) -> str:
    """An SVG: a panel for each dimension, both axes logarithmic, so that a line as steep as the
    dashed one grows with what is made large.
    """
    values = {key: float(figure["value"]) for key, figure in figures.items()}
    drawn = [values[f"{w}_{d}_{t}"] for w in works for d in dimensions for t in times]
    low, high = math.floor(math.log10(min(drawn))), math.ceil(math.log10(max(drawn)))
    scale = _Scale(low, max(high, low + 1), times)
    width = _LEFT + len(dimensions) * (_PANEL + _GAP)
    height = _TOP + _HEIGHT + 50 + _LEGEND_ROW * math.ceil(len(works) / 2)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">',
        "<style>text { font: 12px sans-serif }</style>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for number, (dimension, words) in enumerate(dimensions.items()):
        left = _LEFT + number * (_PANEL + _GAP)
        parts += scale.frame(left, words)
        for colour, work in zip(_COLOURS, works, strict=False):
            found = [values[f"{work}_{dimension}_{one}"] for one in times]
            parts.append(scale.line(left, found, colour))
    parts += _legend(works, top=_TOP + _HEIGHT + 55)
    return "\n".join([*parts, "</svg>\n"])


class _Scale:
    """Where a value lies in a panel; `low` and `high` are powers of ten."""

    def __init__(self, low: int, high: int, times: Sequence[int]) -> None:
        self._low, self._high, self._times = low, high, times
        self._decades = math.log10(times[-1] / times[0])

    def across(self, left: float, times: float) -> float:
        return left + _PANEL * math.log10(times / self._times[0]) / self._decades

    def down(self, value: float) -> float:
        part = (math.log10(value) - self._low) / (self._high - self._low)
        return _TOP + _HEIGHT * (1 - part)

    def frame(self, left: float, words: str) -> Iterator[str]:
        """The panel's title, its grid, and the line of what grows with the thing itself."""
        yield f'<text x="{left}" y="{_TOP - 14}" font-weight="bold">{escape(words)}</text>'
        for power in range(self._low, self._high + 1):
            y = self.down(10.0**power)
            yield (
                f'<line x1="{left}" y1="{y:.1f}" x2="{left + _PANEL}" y2="{y:.1f}"'
                ' stroke="#dddddd"/>'
            )
            yield f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g}</text>'
        for one in self._times:
            x = self.across(left, one)
            y = _TOP + _HEIGHT + 18
            yield f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{one} times</text>'
        # From the lowest left corner on, as far as it stays inside of the panel.
        reach = min(self._times[-1] / self._times[0], 10.0 ** (self._high - self._low))
        bottom = 10.0**self._low
        yield (
            f'<line x1="{left}" y1="{self.down(bottom):.1f}"'
            f' x2="{self.across(left, self._times[0] * reach):.1f}"'
            f' y2="{self.down(bottom * reach):.1f}" stroke="#999999" stroke-dasharray="4 4"/>'
        )

    def line(self, left: float, found: Sequence[float], colour: str) -> str:
        points = " ".join(
            f"{self.across(left, times):.1f},{self.down(value):.1f}"
            for times, value in zip(self._times, found, strict=True)
        )
        return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'


def _legend(works: Mapping[str, str], *, top: int) -> Iterator[str]:
    for number, (colour, words) in enumerate(zip(_COLOURS, works.values(), strict=False)):
        x, y = _LEFT + number % 2 * 400, top + number // 2 * _LEGEND_ROW
        yield f'<line x1="{x}" y1="{y}" x2="{x + 24}" y2="{y}" stroke="{colour}" stroke-width="2"/>'
        yield f'<text x="{x + 32}" y="{y + 4}">{escape(words)}</text>'
    x, y = _LEFT + len(works) % 2 * 400, top + len(works) // 2 * _LEGEND_ROW
    yield (
        f'<line x1="{x}" y1="{y}" x2="{x + 24}" y2="{y}" stroke="#999999" stroke-dasharray="4 4"/>'
    )
    yield f'<text x="{x + 32}" y="{y + 4}">as steep as linear; ms, both axes logarithmic</text>'
