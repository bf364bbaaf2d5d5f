"""`mpack-gateway demo` as a process: exit 0 only when all was true, and nothing left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.demo.rados_gateway import HOW_TO_GET_IT
from tests.git_repositories import EXECUTABLE, LINK, GitRepository
from tests.rgw import check_s3_server

COMMAND = [sys.executable, "-c", "from gateway.cli import main; main()", "demo"]


def environment(open_folder: Path, **settings: str) -> dict[str, str]:
    """A TMPDIR of its own shows what is left."""
    scratch = open_folder / "scratch"
    scratch.mkdir()
    scratch.chmod(0o711)
    return os.environ | {"TMPDIR": str(scratch), "COLUMNS": "100"} | settings


def processes_with(text: Path) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(text) in command:
            found.append(command.decode(errors="replace"))
    return found


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("store", ["local", "s3"])
def test_everything_it_claims_holds(open_folder: Path, store: str) -> None:
    if store == "s3":
        check_s3_server()
    with GitRepository(open_folder / "git") as git:
        base = git.commit({b"a": b"one", b"d/b": b"two", b"empty": b""})
        side = git.commit({b"a": b"one", b"d/b": b"side"}, parents=[base])
        main = git.commit({b"a": b"main", b"d/b": b"two"}, parents=[base])
        git.commit(
            {b"a": b"main", b"d/run": (EXECUTABLE, b"#!"), b"l": (LINK, b"a"), b"\xff": b"odd"},
            parents=[main, side],
        )
    environ = environment(
        open_folder, DEMO_REPO=str(open_folder / "git"), DEMO_TTL="2", DEMO_STORE=store
    )
    done = subprocess.run(COMMAND, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All of it held" in done.stdout
    assert "✗" not in done.stdout
    assert re.search(r"\d+ ms after its deadline", done.stdout)
    assert re.search(r"start(-up sweep)? reclaimed 1 lease +\d\.\d s overdue", done.stdout)
    plain = [line for line in done.stdout.splitlines() if str(open_folder) not in line]
    assert max(map(len, plain)) <= 100
    assert done.stderr == ""
    left = list((open_folder / "scratch").iterdir())
    assert [path.suffix for path in left] == [".log"]
    assert processes_with(open_folder) == []


def test_without_an_s3_server_it_says_what_to_install(open_folder: Path) -> None:
    environ = environment(open_folder, DEMO_STORE="s3", PATH=str(open_folder))
    done = subprocess.run(COMMAND, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 75
    assert HOW_TO_GET_IT in done.stderr
    assert "Traceback" not in done.stderr
    assert list((open_folder / "scratch").iterdir()) == []


@pytest.mark.timeout(60)
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_breaking_it_off_leaves_nothing_running(open_folder: Path, ending: signal.Signals) -> None:
    environ = environment(open_folder, DEMO_REPO=str(open_folder), DEMO_TTL="30")
    with subprocess.Popen(COMMAND, env=environ, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if "The deadline" in line:
                process.send_signal(ending)
    assert "no Git repository" in said
    assert process.returncode == 128 + ending
    assert processes_with(open_folder) == []
    assert [path.suffix for path in (open_folder / "scratch").iterdir()] == [".log"]
