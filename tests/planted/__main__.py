"""`python -m tests.planted`: see the package."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from tests.planted.bugs import BUGS, Bug
from tests.planted.layers import layers_for
from tests.planted.page import page
from tests.planted.run import TOP, Found, ask, copied_tree, hunt


def main() -> int:
    """Hunt, print the table; 1 when a bug was not found."""
    parser = argparse.ArgumentParser(prog="python -m tests.planted")
    parser.add_argument("--bug", action="append", choices=[bug.name for bug in BUGS])
    parser.add_argument("--layer", help="ask this layer alone, of the bugs that it may find")
    parser.add_argument("--json", type=Path, help="keep what was found here")
    parser.add_argument("--page", action="store_true", help="write docs/planted-bugs.md")
    asked = parser.parse_args()
    found = _kept(asked.json)
    with copied_tree() as tree:
        for bug in _asked(asked.bug, asked.layer):
            if asked.layer:
                one = found.setdefault(bug.name, Found(bug=bug.name))
                one.alone[asked.layer] = ask(bug, tree, asked.layer)
                told = f"{asked.layer}: {one.alone[asked.layer] or 'NOT FOUND'}"
            else:
                one = hunt(bug, tree)
                one.alone = found[bug.name].alone if bug.name in found else {}
                found[bug.name] = one
                told = (
                    f"{one.seconds:6.1f} s  {one.layer}: {one.test}" if one.layer else "NOT FOUND"
                )
            print(f"{bug.name:40} {told}", flush=True)
            _keep(asked.json, found)
    table = page([found[bug.name] for bug in BUGS if bug.name in found])
    print(f"\n{table}")
    if asked.page:
        (TOP / "docs/planted-bugs.md").write_text(table)
    return int(any(one.first is None for one in found.values()))


def _asked(names: list[str] | None, layer: str | None) -> list[Bug]:
    """The bugs of these names; those among them that this layer may find."""
    return [
        bug
        for bug in BUGS
        if (not names or bug.name in names)
        and (not layer or layer in [one.name for one in layers_for(bug)])
    ]


def _kept(path: Path | None) -> dict[str, Found]:
    """What an earlier run found, by bug."""
    if path is None or not path.exists():
        return {}
    return {told["bug"]: Found(**told) for told in json.loads(path.read_text())}


def _keep(path: Path | None, found: dict[str, Found]) -> None:
    if path is not None:
        path.write_text(json.dumps([asdict(one) for one in found.values()], indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
