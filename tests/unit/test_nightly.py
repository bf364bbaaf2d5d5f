"""The night's list of parts; what they do is theirs."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from benchmarks.__main__ import ALL
from tests.nightly import __main__ as nightly
from tests.nightly.parts import PARTS, Part


def test_each_has_a_name_and_a_file_of_its_own(tmp_path: Path) -> None:
    commands = [part.filled(seed=7, results=tmp_path) for part in PARTS]
    assert len({part.name for part in PARTS}) == len(PARTS)
    assert not [word for command in commands for word in command if "{" in word]


def test_they_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert nightly.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(part.name in listed for part in PARTS)


def test_what_a_part_runs_is_there() -> None:
    for part in PARTS:
        module, *rest = part.command
        assert importlib.util.find_spec(module) is not None, part.name
        assert module != "benchmarks" or rest[0] in ALL, part.name


def test_a_part_that_fails_fails_the_night(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = Part(name="good", about="", command=("json.tool", "--help"), minutes_max=1)
    bad = Part(name="bad", about="", command=("json.tool", "x"), minutes_max=1)
    monkeypatch.setattr(nightly, "PARTS", (bad, good))
    assert nightly.main(["good", "--results", str(tmp_path)]) == 0
    assert nightly.main(["--results", str(tmp_path), "--seed", "5"]) == 1
    kept = json.loads((tmp_path / "nightly.json").read_text())
    assert kept["seed"] == 5
    assert [part["how"] for part in kept["parts"]] == ["failed", "ok"]


def test_a_part_that_nobody_knows_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        nightly.main(["nonsense"])
    assert "no such part: nonsense" in capsys.readouterr().err
