"""The planted bugs still fit the code; `make nightly` sees that each is found."""

from __future__ import annotations

import ast

import pytest

from tests.planted.bugs import BUGS, Bug
from tests.planted.layers import layers_for
from tests.planted.page import page
from tests.planted.run import TOP, Found


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_edit_still_applies(bug: Bug) -> None:
    text = (TOP / bug.path).read_text()
    spoilt = bug.planted_in(text)
    assert spoilt != text
    if bug.path.endswith(".py"):
        ast.parse(spoilt)


def test_each_has_a_name_of_its_own_and_layers_that_exist() -> None:
    assert len({bug.name for bug in BUGS}) == len(BUGS)
    paths = {part for bug in BUGS for layer in layers_for(bug) for part in layer.command}
    missing = [part for part in paths if part.startswith("tests/") and not (TOP / part).exists()]
    assert missing == []


def test_the_page_names_a_test_without_its_parameters() -> None:
    """Ids of parameters may hold slashes and brackets of their own."""
    found = Found(bug=BUGS[0].name, layer="unit", test="tests/unit/test_a.py::test_b[x/y-z[0]]")
    assert "| `test_a.py::test_b` |" in page([found])


def test_the_page_tells_what_a_layer_finds_by_itself() -> None:
    first, second = (
        Found(bug=bug.name, layer="unit", test="tests/unit/test_a.py::test_b") for bug in BUGS[:2]
    )
    first.alone, second.alone = {"simulation": "simulation::seed-1:I1"}, {"simulation": None}
    told = page([first, second])
    assert "2 of 2 are found. The simulation finds 1 of 2 by itself; " in told
    assert "| ● | ● | `test_a.py::test_b` |" in told
    assert "| ● | · | `test_a.py::test_b` |" in told
