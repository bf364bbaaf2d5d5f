"""The drawing and the table of how cost grows."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree as ET

from benchmarks import curves

WORKS = {"push": "a push <of one>", "fetch": "a fetch"}
DIMENSIONS = {"history": "commits", "leases": "open leases"}
TIMES = (1, 10, 100)
SVG = "{http://www.w3.org/2000/svg}"


def figures(**values: tuple[float, float, float]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name, three in values.items():
        found |= {f"{name}_{t}": {"value": one} for t, one in zip(TIMES, three, strict=True)}
        found[f"{name}_ratio"] = {"value": three[-1] / three[0]}
    return found


FIGURES = figures(
    push_history=(2, 3, 5),
    push_leases=(2, 2, 2),
    fetch_history=(1, 10, 100),
    fetch_leases=(9, 9, 9),
)


def polylines() -> list[list[tuple[float, float]]]:
    top = ET.fromstring(curves.drawing(FIGURES, WORKS, DIMENSIONS, times=TIMES))
    found = []
    for line in top.iter(f"{SVG}polyline"):
        points = [point.split(",") for point in line.attrib["points"].split()]
        found.append([(float(x), float(y)) for x, y in points])
    return found


def test_a_line_for_each_work_in_each_panel() -> None:
    assert len(polylines()) == len(WORKS) * len(DIMENSIONS)


def test_what_grows_faster_is_drawn_steeper_and_what_does_not_is_level() -> None:
    push_history, fetch_history, push_leases, fetch_leases = polylines()
    rises = [line[0][1] - line[-1][1] for line in (push_leases, push_history, fetch_history)]
    assert rises[0] == 0 < rises[1] < rises[2]
    assert fetch_leases[0][1] < push_leases[0][1], "the larger value lies higher"
    assert fetch_history[1][1] == (fetch_history[0][1] + fetch_history[2][1]) / 2, "logarithmic"


def test_a_table_row_holds_every_figure_and_how_much_it_grew() -> None:
    head, _line, push, fetch = curves.table(FIGURES, WORKS, DIMENSIONS, times=TIMES)
    assert head == "| p50 in ms at 1 · 10 · 100 times | commits | open leases |"
    assert push == "| a push <of one> | 2 · 3 · 5 (**2.5 times**) | 2 · 2 · 2 (**1 times**) |"
    assert "1 · 10 · 100 (**100 times**)" in fetch
