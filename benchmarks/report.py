"""Results: kept as JSON, printed as a table, and put into docs/benchmarks.md."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import curves
from benchmarks.figures import Benchmark, Figure, Run
from benchmarks.growth import DIMENSIONS, GROWTH, TIMES, WORK

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
_DRAWING = "growth.svg"
_BEGIN, _END = "<!-- figures -->", "<!-- end of figures -->"

Result = Mapping[str, Any]


def result_of(
    benchmark: Benchmark, runs: Sequence[Run], machine: Mapping[str, Any], *, quick: bool
) -> Result:
    """What is kept of a benchmark."""
    return {
        "name": benchmark.name,
        "about": benchmark.about,
        "quick": quick,
        "machine": machine,
        "figures": {
            key: _figure(figure, [run[key] for run in runs])
            for key, figure in benchmark.figures.items()
        },
    }


def _figure(figure: Figure, values: Sequence[float]) -> dict[str, Any]:
    value = figure.over(values)
    told: dict[str, Any] = {"label": figure.label, "unit": figure.unit, "value": _rounded(value)}
    told["runs"] = [_rounded(one) for one in values]
    told["of_runs"] = "worst" if figure.worst else "median"
    if figure.target:
        told |= {"target": figure.target, "met": figure.met(value)}
    return told


def _rounded(value: float) -> float:
    return float(f"{value:.4g}") if abs(value) < 1000 else round(value)


def keep(result: Result, folder: Path) -> None:
    """Write the JSON, over an older one."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=2, ensure_ascii=False)
    (folder / f"{result['name']}.json").write_text(text + "\n")


def table(result: Result) -> str:
    """The figures for a terminal."""
    figures = list(result["figures"].values())
    runs = len(figures[0]["runs"])
    head = f"{result['name']}: {result['about']} ({runs} runs)"
    width = max(len(figure["label"]) for figure in figures)
    lines = [
        f"  {figure['label']:<{width}}  {shown(figure):>14}   {_verdict(figure)}".rstrip()
        for figure in figures
    ]
    return "\n".join([head, *lines, ""])


def shown(figure: Mapping[str, Any]) -> str:
    """A value with its unit."""
    value = figure["value"]
    number = f"{value:,.0f}" if abs(value) >= 100 or float(value).is_integer() else f"{value:.3g}"
    return f"{number} {figure['unit']}".strip()


def _verdict(figure: Mapping[str, Any]) -> str:
    if "target" not in figure:
        return ""
    return f"{figure['target']}: {'met' if figure['met'] else 'NOT met'}"


def write_page(results: Path = RESULTS, page: Path = PAGE) -> None:
    """Put the kept figures between the page's marks; the words around them stay."""
    kept = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    assert not any(result["quick"] for result in kept), "quick runs say nothing about speed"
    before, _, rest = page.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    page.write_text(f"{before}{_BEGIN}\n{_sections(kept)}\n{_END}{after}")
    for result in kept:
        if result["name"] == GROWTH.name:
            drawn = curves.drawing(result["figures"], WORK, DIMENSIONS, times=TIMES)
            (page.parent / _DRAWING).write_text(drawn)


def _sections(kept: Iterable[Result]) -> str:
    return "\n".join(_section(result) for result in kept)


def _section(result: Result) -> str:
    machine = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    title = f"\n### {result['name']}\n\n{result['about'][:1].upper()}{result['about'][1:]}.\n"
    return "\n".join([title, *_rows(result), f"\nMachine: {machine}."])


def _rows(result: Result) -> list[str]:
    if result["name"] == GROWTH.name:
        rows = curves.table(result["figures"], WORK, DIMENSIONS, times=TIMES)
        return [f"![{result['about']}]({_DRAWING})\n", *rows]
    rows = [
        f"| {figure['label']} | {shown(figure)} | {figure.get('target', '')} | "
        f"{_met(figure)} | {' · '.join(f'{one:,g}' for one in figure['runs'])} |"
        for figure in result["figures"].values()
    ]
    return ["| | figure | target | met | each run |", "|---|---:|---|---|---|", *rows]


def _met(figure: Mapping[str, Any]) -> str:
    return {True: "yes", False: "**no**", None: ""}[figure.get("met")]
