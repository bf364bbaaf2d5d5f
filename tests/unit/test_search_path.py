"""What `dev` and `demo` say to try works in a shell that has never heard of the program."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from gateway.cli.search_path import search_path_lines


def test_a_shell_finds_the_program_by_what_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newcomer has run `make demo`, and nothing of it is on the search path."""
    monkeypatch.setenv("PATH", str(tmp_path))
    (line,) = search_path_lines()
    done = subprocess.run(
        ["/bin/sh", "-c", f"{line}; command -v mpack-gateway"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    monkeypatch.setenv("PATH", str(Path(done.stdout.strip()).parent))
    assert search_path_lines() == []
