"""The verifier that auditors run by themselves finds and names whatever was done to an export."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import UUID

import pytest

from leases.chain import StoredEvent, event_hash, genesis
from leases.codec import dump
from tests.integration.commands import Commands

SCRIPT = Path(__file__).parents[2] / "deploy" / "verify_export.py"

Line = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A log's lines as they were written, and what was published of it."""

    folder: Path
    log_id: UUID
    lines: list[str]

    @property
    def events(self) -> list[Line]:
        return [json.loads(line) for line in self.lines]

    def head(self, position: int) -> str:
        return f"{position}:{self.events[position - 1]['hash']}"


@pytest.fixture
def exported(commands: Commands, tmp_path: Path) -> Exported:
    for _ in range(3):
        commands.grant(ended=True)
    commands.run("sweep")
    commands.grant()
    file = tmp_path / "log.ndjson"
    commands.run("events", "export", "--output", str(file))
    log_id = UUID(str(commands.sql("SELECT log_id FROM event_head")))
    exported = Exported(folder=tmp_path, log_id=log_id, lines=file.read_text().splitlines())
    assert len(exported.lines) == 14
    return exported


def run(*args: str, data: str | None = None) -> subprocess.CompletedProcess[str]:
    """As an auditor does, with none of our packages in reach."""
    return subprocess.run(
        [sys.executable, "-I", "-S", str(SCRIPT), *args],
        input=data,
        capture_output=True,
        text=True,
        check=False,
    )


def verdict(exported: Exported, lines: list[str], *args: str) -> tuple[int, str]:
    done = run("-", "--log-id", str(exported.log_id), *args, data="\n".join(lines) + "\n")
    assert done.stderr == ""
    return done.returncode, done.stdout


def rehashed(exported: Exported, events: list[Line]) -> list[str]:
    """Whoever can write the whole file can make its hashes fit."""
    previous, lines = genesis(exported.log_id), []
    for event in events:
        row = {name: value for name, value in event.items() if name != "hash"}
        data = dump(row.pop("data"))
        row["event_id"] = UUID(row["event_id"])
        row["recorded_at"] = datetime.fromisoformat(row["recorded_at"])
        sha = hashlib.sha256(data.encode()).digest()
        previous = event_hash(previous, StoredEvent(**row, data=data, data_sha=sha, hash=b""))
        lines.append(json.dumps(event | {"hash": previous.hex()}))
    return lines


def test_a_log_as_it_was_written(exported: Exported) -> None:
    code, told = verdict(exported, exported.lines, "--head", exported.head(14))
    assert (code, told.splitlines()) == (
        0,
        [f"ok       14 events, 1 to 14, {exported.events[-1]['hash']}"],
    )
    assert rehashed(exported, exported.events)[-1].endswith(f'"{exported.events[-1]["hash"]}"}}')


def test_what_was_not_given_is_not_claimed(exported: Exported) -> None:
    done = run("-", data="\n".join(exported.lines))
    assert done.returncode == 0
    assert "taken on trust" in done.stdout
    assert "rewritten or cut" in done.stdout


def test_a_log_in_several_files(exported: Exported) -> None:
    for name, part in (("a", exported.lines[:5]), ("b", exported.lines[5:])):
        (exported.folder / name).write_text("\n".join(part) + "\n")
    first, second = str(exported.folder / "a"), str(exported.folder / "b")
    log_id = ["--log-id", str(exported.log_id)]
    assert run(first, second, *log_id).returncode == 0
    assert run(second, "--after", exported.head(5), "--head", exported.head(9)).returncode == 0
    assert "follows 3: 2 missing" in run(second, "--after", exported.head(3)).stdout
    assert "does not follow" in run(second, "--after", f"5:{'0' * 64}").stdout
    assert "event 6 follows 0: 5 missing" in run(second, *log_id).stdout
    assert "out of order" in run(second, first, *log_id).stdout


def edited(number: int, change: Line) -> Callable[[list[Line]], list[Line]]:
    def edit(events: list[Line]) -> list[Line]:
        events[number] = events[number] | change
        return events

    return edit


def inserted(events: list[Line]) -> list[Line]:
    return [*events[:4], events[4] | {"stream": "lease/x", "version": 1}, *events[4:]]


def swapped(events: list[Line]) -> list[Line]:
    events[3], events[4] = events[4], events[3]
    return events


@pytest.mark.parametrize(
    "change, named",
    [
        (edited(4, {"data": {"reason": "other"}}), "event 5: its hash does not follow"),
        (edited(4, {"actor": "somebody"}), "event 5: its hash does not follow"),
        (edited(4, {"request_id": "r"}), "event 5: its hash does not follow"),
        (edited(4, {"recorded_at": "2020-01-01T00:00:00.000000Z"}), "event 5 was recorded before"),
        (edited(4, {"event_id": "0" * 32}), "event 5: its hash does not follow"),
        (edited(4, {"hash": "0" * 64}), "event 6: its hash does not follow"),
        (edited(4, {"version": 9}), "where"),
        (edited(4, {"more": 1}), "-:5 is no event: it has other keys"),
        (edited(4, {"data": []}), "-:5 is no event"),
        (lambda events: [*events[:4], *events[5:]], "event 6 follows 4: 1 missing"),
        (inserted, "event 5 follows 5: events are out of order, or there twice"),
        (swapped, "event 5 follows 3: 1 missing"),
        (lambda events: events[1:], "event 2 follows 0: 1 missing"),
        (lambda _events: [], "no events"),
    ],
)
def test_what_was_done_to_single_lines_is_named(
    exported: Exported, change: Callable[[list[Line]], list[Line]], named: str
) -> None:
    lines = [json.dumps(event) for event in change(exported.events)]
    code, told = verdict(exported, lines)
    assert code == 1
    assert named in told


def test_a_tail_that_was_cut_off(exported: Exported) -> None:
    """The rest holds by itself; the published head tells."""
    assert verdict(exported, exported.lines[:10])[0] == 0
    code, told = verdict(exported, exported.lines[:10], "--head", exported.head(14))
    assert code == 1
    assert "the log ends at 10, but event 14 was published: its end was cut off" in told


def test_a_log_that_was_rewritten_as_a_whole(exported: Exported) -> None:
    events = exported.events
    events[4]["actor"] = "somebody"
    lines = rehashed(exported, events)
    assert verdict(exported, lines)[0] == 0, "its hashes fit"
    code, told = verdict(exported, lines, "--head", exported.head(4), "--head", exported.head(9))
    assert code == 1
    assert told.splitlines()[0] == "problem  event 9 is not the one that was published"


def test_another_log(exported: Exported) -> None:
    done = run("-", "--log-id", str(UUID(int=7)), data="\n".join(exported.lines))
    assert "event 1: its hash does not follow" in done.stdout


def test_a_broken_promise_in_an_honest_log(exported: Exported) -> None:
    events = exported.events
    at = next(n for n, event in enumerate(events) if event["type"] == "lease.reclaimed")
    again = events[at] | {"position": 15, "version": events[at]["version"] + 1}
    again["recorded_at"] = events[-1]["recorded_at"]
    again["data"] = again["data"] | {"lateness_ms": -1}
    code, told = verdict(exported, rehashed(exported, [*events, again]))
    stream = again["stream"]
    assert code == 1
    assert told.splitlines()[:2] == [
        f"problem  event 15: {stream} is reclaimed a second time",
        f"problem  event 15: {stream} was reclaimed before its deadline",
    ]


def test_files_and_arguments_that_make_no_sense(exported: Exported) -> None:
    absent = run(str(exported.folder / "absent"))
    assert (absent.returncode, absent.stdout) == (2, "")
    assert run("-", "--head", "4", data="").returncode == 2
    told = json.loads(run("-", "--json", data="[]\n{\n\xff\n").stdout)
    assert told["ok"] is False
    assert len(told["problems"]) == 4


def test_no_changed_byte_goes_unseen(exported: Exported) -> None:
    """Unless the line still says the same."""
    module = loaded()
    text = "\n".join(exported.lines).encode()
    chance = random.Random(20261124)
    for _ in range(2000):
        at = chance.randrange(len(text))
        changed = text[:at] + bytes([chance.randrange(32, 127)]) + text[at + 1 :]
        verifier = module.Verifier(exported.log_id, None, [])
        for number, line in enumerate(changed.decode().split("\n"), 1):
            verifier.take(line, f"line {number}")
        verifier.end()
        if not verifier.problems:
            told = [json.loads(line) for line in changed.decode().split("\n")]
            same = [one | {"hash": one["hash"].lower()} for one in told]
            assert [as_said(one) for one in same] == [as_said(one) for one in exported.events]


def as_said(event: Line) -> Line:
    """Hex digits mean the same in both cases."""
    return event | {"event_id": UUID(event["event_id"])}


def loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("verify_export", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
