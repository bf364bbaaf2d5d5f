"""`python -m tests.planted`: see the package."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from tests.planted.bugs import BUGS
from tests.planted.layers import layers_for
from tests.planted.page import page
from tests.planted.run import TOP, Found, copied_tree, hunt


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
        for bug in BUGS:
            if asked.bug and bug.name not in asked.bug:
                continue
            if asked.layer and asked.layer not in [layer.name for layer in layers_for(bug)]:
                continue
            one = hunt(bug, tree, only=asked.layer)
            found[bug.name] = one
            told = f"{one.layer}: {one.test}" if one.layer else "NOT FOUND"
            print(f"{one.seconds:6.1f} s  {bug.name:40} {told}", flush=True)
            if asked.json:
                told_all = [asdict(each) for each in found.values()]
                asked.json.write_text(json.dumps(told_all, indent=1) + "\n")
    table = page([found[bug.name] for bug in BUGS if bug.name in found])
    print(f"\n{table}")
    if asked.page:
        (TOP / "docs/planted-bugs.md").write_text(table)
    return int(any(one.layer is None for one in found.values()))


def _kept(path: Path | None) -> dict[str, Found]:
    """What an earlier run found, by bug."""
    if path is None or not path.exists():
        return {}
    return {told["bug"]: Found(**told) for told in json.loads(path.read_text())}


if __name__ == "__main__":
    sys.exit(main())
