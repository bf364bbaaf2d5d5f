"""What the demonstration prints fits the terminal it is shown on."""

from __future__ import annotations

import pytest

from gateway.demo.report import Report


@pytest.mark.parametrize("columns", [80, 100])
def test_a_figure_does_not_run_over_the_edge(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A terminal has eighty columns unless somebody made it wider."""
    monkeypatch.setenv("COLUMNS", str(columns))
    report = Report()
    report.check("one pack, stored under a lease", True, "220 ms")
    report.check("pushed 161 commits and 1,379 files' contents", True, "12.6 MB, 1.7 s")
    report.check("the file is gone from the disk, within 1000 ms", True, "8 ms after its deadline")
    report.check("downloaded through its presigned URL, SHA-256 as promised", True, "265 kB")
    said = capsys.readouterr().out.splitlines()
    assert max(map(len, said)) <= columns
    assert "220 ms" in said[0]
