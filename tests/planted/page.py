"""docs/planted-bugs.md, made from a run."""

from __future__ import annotations

from collections.abc import Sequence

from tests.planted.bugs import BUGS
from tests.planted.layers import layers_for
from tests.planted.run import Found

_NAMES = ("unit", "property", "integration", "stateful", "simulation", "crash points", "fault")
_HEAD = """# Planted bugs

Would the tests notice? Each line below is a mistake that somebody could make: one small edit, made
in a copy of the tree (`python -m tests.planted`, a part of `make nightly`). Then layers of tests
run from quick to slow, each narrowed to what watches the file, until one fails. **●** found it; ·
ran and did not; an empty field was not asked. CI checks that every edit still applies.

What one layer finds without the others is asked by `--layer`, and stands here too. The simulation
runs none of the SQL and no quotas; it is asked for bugs of the engine alone, and plays two dozen
worlds of ten minutes with each.

"""
_MARKS = {True: "●", False: "·", None: ""}


def page(found: Sequence[Found]) -> str:
    """The page."""
    says = {bug.name: bug.says for bug in BUGS}
    names = [name for name in _NAMES if any(one.says(name) is not None for one in found)]
    rows = [
        f"| {one.bug} | {says[one.bug]} | "
        + " | ".join(_MARKS[one.says(name)] for name in names)
        + f" | {_short(one.first)} |"
        for one in found
    ]
    head = f"| bug | what would happen | {' | '.join(names)} | the first test that fails |"
    caught = sum(one.first is not None for one in found)
    alone = [_told_alone(name, [one for one in found if name in one.alone]) for name in _NAMES]
    later = [bug.name for bug in BUGS if bug.name not in {one.bug for one in found}]
    return (
        _HEAD
        + f"{caught} of {len(found)} are found.{''.join(alone)}\n"
        + (f"Not run yet: {', '.join(later)}.\n" if later else "")
        + "\n"
        + "\n".join([head, "|---|---|" + ":-:|" * len(names) + "---|", *rows])
        + "\n"
    )


def _told_alone(name: str, asked: Sequence[Found]) -> str:
    if not asked:
        return ""
    caught = sum(one.alone[name] is not None for one in asked)
    may = [bug for bug in BUGS if name in {layer.name for layer in layers_for(bug)}]
    rest = f"; {len(may) - len(asked)} it was not asked about yet" if len(may) > len(asked) else ""
    return f" The {name} finds {caught} of {len(asked)} by itself{rest}."


def _short(test: str | None) -> str:
    return "**nothing**" if test is None else f"`{test.partition('[')[0].rpartition('/')[2]}`"
