"""The house stays tidy: short rooms, our own `schema`, nothing of one machine in the repository."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import schema

TOP = Path(__file__).resolve().parents[2]
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 500
PACKAGES = ("gateway", "leases", "schema")
ROOMS = [
    path
    for package in PACKAGES
    for path in sorted((TOP / package).rglob("*.py"))
    if "migrations" not in path.parts
]
LOCKS = sorted((TOP / "requirements").glob("*.txt"))
# Folders of somebody's machine, never of the product.
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:home|root|Users|work|farm)/[\w.-]+|\.pyenv/")


def name(path: Path) -> str:
    return str(path.relative_to(TOP))


def tracked() -> Iterator[Path]:
    """What Git tracks or would; in an unpacked release, everything beside the environment."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=TOP,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a Git checkout")
    paths = (TOP / line for line in listed.stdout.split("\0") if line)
    return (path for path in paths if path.is_file() and path != Path(__file__))


@pytest.mark.parametrize("path", ROOMS, ids=name)
def test_files_and_functions_are_short(path: Path) -> None:
    source = path.read_text()
    assert source.count("\n") <= FILE_LINES_MAX
    long = [
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > FUNCTION_LINES_MAX
    ]
    assert long == []


def test_schema_is_ours() -> None:
    """A package of the same import name is on PyPI; an environment may hold it."""
    assert schema.__file__ is not None
    assert Path(schema.__file__).resolve().parent == TOP / "schema"


def test_no_file_names_a_place_of_one_machine() -> None:
    found = [
        f"{name(path)}: {match.group()}"
        for path in tracked()
        for match in MACHINE_PATH.finditer(path.read_text(errors="replace"))
    ]
    assert found == []


@pytest.mark.parametrize("path", LOCKS, ids=name)
def test_lock_files_hold_names_versions_and_hashes_only(path: Path) -> None:
    """An index or a folder in a lock would be one machine's; pip has its own configuration."""
    pin = re.compile(r"[a-z0-9][a-z0-9._-]*==[\w.+!]+( ; [^:@]+)? \\")
    digest = re.compile(r"    --hash=sha256:[0-9a-f]{64}( \\)?")
    odd = [
        line
        for line in path.read_text().splitlines()
        if not (pin.fullmatch(line) or digest.fullmatch(line))
    ]
    assert odd == []


def test_the_locks_agree_on_every_version() -> None:
    """The environments differ in what they hold, never in which version."""
    pins = {
        lock.stem: dict(re.findall(r"^(\S+)==(\S+)", lock.read_text(), re.MULTILINE))
        for lock in LOCKS
    }
    assert pins.keys() == {"run", "test", "check", "bench"}
    assert pins["run"].items() < pins["test"].items()
    for larger in ("check", "bench"):
        assert pins["test"].items() < pins[larger].items()
    for name in pins["check"].keys() & pins["bench"].keys():
        assert pins["check"][name] == pins["bench"][name]
