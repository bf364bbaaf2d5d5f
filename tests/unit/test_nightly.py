"""The night's list of parts; what they do is theirs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

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


def test_a_part_that_is_not_there_breaks_no_night(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = Part(name="later", about="", command=("tests.later",), minutes_max=1)
    failing = Part(name="bad", about="", command=("json.tool", "x"), minutes_max=1)
    monkeypatch.setattr(nightly, "PARTS", (missing, failing))
    assert nightly.main(["later", "--results", str(tmp_path)]) == 0
    assert nightly.main(["--results", str(tmp_path), "--seed", "5"]) == 1
    kept = json.loads((tmp_path / "nightly.json").read_text())
    assert kept["seed"] == 5
    assert [part["how"] for part in kept["parts"]] == ["not there", "failed"]


def test_a_part_that_nobody_knows_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        nightly.main(["nonsense"])
    assert "no such part: nonsense" in capsys.readouterr().err
