"""Nothing secret in anything that a run of the tests says.

Looked through for signatures of URLs and for tokens: what each test printed and logged; the events
and the errors kept in every database, before it is dropped; every scrape of `/metrics` and every
refusal (their readers in tests call `check`); at the run's end every log file that it left.
What is found makes the run fail.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

# Ours, SigV4's, and the store's of the local gateway; a redacted one has asterisks there.
_SECRETS = (
    r"mpk_[A-Za-z0-9_-]{16,}"
    r"|X-Amz-(Signature|Security-Token)=[A-Za-z0-9%]{16,}"
    r"|[?&]signature=[A-Za-z0-9_-]{16,}"
)
_PATTERN = re.compile(_SECRETS)
_SHOWN_CHARACTERS = 12  # Enough to find it, too little to use it.
_KEPT = {
    "events": "SELECT event::text FROM events AS event WHERE event::text ~ $1 LIMIT 1",
    "leases": "SELECT last_error FROM mpack_leases WHERE last_error ~ $1 LIMIT 1",
}
_FOUND = pytest.StashKey[list[str]]()
_SENT = "secrets_found"  # From a worker of xdist to its controller.


def secrets_in(text: str) -> Iterator[str]:
    """The beginning of each secret in a text."""
    for match in _PATTERN.finditer(text):
        yield f"{match[0][:_SHOWN_CHARACTERS]}…"


def check(text: str, *, where: str) -> None:
    """Fail when there is one."""
    found = list(secrets_in(text))
    assert not found, f"{where} hold a secret: {found}"


async def check_database(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    """Look through what is kept there, if the tables are still there."""
    for where, sql in _KEPT.items():
        try:
            row = await connection.fetchrow(sql, _SECRETS)
        except asyncpg.UndefinedTableError:
            continue
        assert row is None, f"the {where} hold a secret: {list(secrets_in(row[0]))}"


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_FOUND] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report: Any = yield
    for title, text in report.sections:
        item.config.stash[_FOUND] += [
            f"{item.nodeid}: {title}: {found}" for found in secrets_in(text)
        ]
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    config.stash[_FOUND] += _in_log_files(config)
    if (output := getattr(config, "workeroutput", None)) is not None:
        output[_SENT] = config.stash[_FOUND]
    elif config.stash[_FOUND] and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _in_log_files(config: pytest.Config) -> Iterator[str]:
    """Of this process's tests; a controller has none of its own."""
    top: Path | None = config._tmp_path_factory._basetemp  # type: ignore[attr-defined]
    if top is None:
        return
    for path in top.rglob("*.log"):
        if path.is_file():
            for found in secrets_in(path.read_text(errors="replace")):
                yield f"{path.relative_to(top)}: {found}"


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A worker has ended: what it found counts here."""
    node.config.stash[_FOUND] += getattr(node, "workeroutput", {}).get(_SENT, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    found = terminalreporter.config.stash[_FOUND]
    if found:
        terminalreporter.section("secrets were told", red=True, bold=True)
        for line in sorted(set(found)):
            terminalreporter.line(line)
