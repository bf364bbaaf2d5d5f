"""docs/planted-bugs.md, made from a run."""

from __future__ import annotations

from collections.abc import Sequence

from tests.planted.bugs import BUGS
from tests.planted.run import Found

_NAMES = ("unit", "property", "integration", "stateful", "simulation", "crash points", "fault")
_HEAD = """# Planted bugs

Would the tests notice? Each line below is a mistake that somebody could make: one small edit, made
in a copy of the tree (`python -m tests.planted`, a part of `make nightly`). Then layers of tests
run from quick to slow, each narrowed to what watches the file, until one fails. **●** found it; ·
ran and did not; an empty field was not asked. CI checks that every edit still applies.

What one layer finds without the others is asked by `--layer`. The simulation, which runs none of
the SQL, finds by itself life-without-end, renew-shortens, grace-forgotten, lateness-sign,
activate-without-not-after, stuck-never-told, outage-charged, record-by-process-clock,
record-before-delete, upload-abort-forgotten, reconcile-deletes-foreign,
reconcile-reports-forgotten-as-residue and reconcile-trusts-old-listing.

"""


def page(found: Sequence[Found]) -> str:
    """The page."""
    says = {bug.name: bug.says for bug in BUGS}
    asked = {name for one in found for name in (*one.passed, one.layer)}
    names = [name for name in _NAMES if name in asked]
    rows = [
        f"| {one.bug} | {says[one.bug]} | "
        + " | ".join(
            "●" if name == one.layer else "·" if name in one.passed else "" for name in names
        )
        + f" | {_short(one.test)} |"
        for one in found
    ]
    head = f"| bug | what would happen | {' | '.join(names)} | the first test that fails |"
    caught = sum(one.layer is not None for one in found)
    later = [bug.name for bug in BUGS if bug.name not in {one.bug for one in found}]
    return (
        _HEAD
        + f"{caught} of {len(found)} are found.\n"
        + (f"Not run yet: {', '.join(later)}.\n" if later else "")
        + "\n"
        + "\n".join([head, "|---|---|" + ":-:|" * len(names) + "---|", *rows])
        + "\n"
    )


def _short(test: str | None) -> str:
    return "**nothing**" if test is None else f"`{test.partition('[')[0].rpartition('/')[2]}`"
