"""The verbs that move leases, stop deletions and tell how things stand."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from leases.owner import OWNER_KEY, Mark
from tests.integration.commands import Commands
from tests.stores import ON_S3


def lease_of(commands: Commands, mpack_id: str) -> dict[str, Any]:
    return commands.json("lease", "show", mpack_id)


def last_event(commands: Commands, mpack_id: str) -> dict[str, Any]:
    event = lease_of(commands, mpack_id)["events"][-1]
    assert isinstance(event, dict)
    return event


def overdue(commands: Commands, ago: str = "1 hour") -> None:
    commands.sql(f"UPDATE mpack_leases SET delete_at = delete_at - interval '{ago}'")


def mark(commands: Commands, log_id: str) -> None:
    commands.view.write([OWNER_KEY], Mark(log_id=log_id, position=0, hash="").dump())


def test_revoke_names_who_and_why(commands: Commands) -> None:
    mpack_id = commands.grant()
    commands.run("lease", "revoke", mpack_id[:28], "--reason", "wrong repo")
    event = last_event(commands, mpack_id)
    assert event["type"] == "lease.revoked"
    assert event["data"]["reason"] == "wrong repo"
    assert event["actor"].startswith("command:")
    assert "reason=wrong repo" in commands.run("lease", "show", mpack_id).stdout
    commands.run("lease", "revoke", mpack_id, exits=2)


def test_renew_moves_the_deadline_on(commands: Commands) -> None:
    mpack_id = commands.grant()
    before = lease_of(commands, mpack_id)["expires_at"]
    told = commands.json("lease", "renew", mpack_id, "--ttl", "2h")
    assert isinstance(told["leases"], list)
    assert told["leases"][0]["expires_at"] > before
    commands.run("lease", "renew", mpack_id, "--ttl", "soon", exits=2)


def test_what_one_lease_refuses_does_not_stop_the_others(commands: Commands) -> None:
    open_, ended = commands.grant(), commands.grant(ended=True)
    commands.run("sweep")
    told = commands.json("lease", "renew", ended, open_, "ffff", "--ttl", "2h", exits=4)
    assert [one["mpack_id"] for one in told["leases"]] == [open_]  # type: ignore[attr-defined]  # JSON
    assert [one["mpack_id"] for one in told["refused"]] == [ended, "ffff"]  # type: ignore[attr-defined]  # JSON
    commands.run("lease", "renew", "ffff", "--ttl", "2h", exits=3)
    commands.run("lease", "renew", "--ttl", "2h", exits=2)


def test_an_ambiguous_beginning_moves_nothing(commands: Commands) -> None:
    first, second = commands.grant(), commands.grant()
    result = commands.run("lease", "revoke", first[:6], "--reason", "x", exits=2)
    assert "more than one" in result.stderr
    assert lease_of(commands, second)["revoked_at"] is None


def test_retry_and_forget_are_for_what_failed(commands: Commands) -> None:
    mpack_id = commands.grant()
    commands.run("lease", "forget", mpack_id, "--reason", "x", exits=2)
    commands.run("lease", "retry", "--stuck", exits=3)
    overdue(commands)
    commands.sql("UPDATE mpack_leases SET attempts = 9, stuck = true")
    commands.sql("UPDATE mpack_leases SET next_attempt_at = clock_timestamp() + interval '1 hour'")
    commands.run("sweep", exits=3)
    commands.run("lease", "retry", "--stuck", mpack_id, exits=2)
    assert mpack_id in commands.run("lease", "retry", "--stuck").stdout
    assert last_event(commands, mpack_id)["type"] == "lease.retried"
    commands.run("lease", "forget", mpack_id, "--reason", "the bucket is gone")
    event = last_event(commands, mpack_id)
    assert (event["type"], event["data"]["outcome"]) == ("lease.reclaimed", "forgotten")
    assert event["data"]["reason"] == "the bucket is gone"
    assert commands.blobs() == 1
    commands.run("lease", "retry", mpack_id, exits=3)


def test_a_pause_stops_sweeps_until_it_is_resumed(commands: Commands) -> None:
    commands.grant(ended=True)
    commands.run("reap", "pause", "--reason", "moving house")
    assert commands.json("reap", "pause", "--reason", "again")["news"] is False
    result = commands.run("sweep", exits=75)
    assert "moving house" in result.stderr
    # However it ends: once the lease is long overdue, `stats` fails.
    assert json.loads(commands.run_any("stats", "--json").stdout)["paused"] is True
    commands.run("reap", "resume")
    assert "was not paused" in commands.run("reap", "resume").stderr
    commands.run("sweep")


def test_only_adopting_resumes_against_the_mark(commands: Commands) -> None:
    commands.grant(ended=True)
    mark(commands, "another")
    commands.run("sweep", exits=75)
    assert "--adopt" in commands.run("reap", "resume", exits=75).stderr
    commands.run("reap", "resume", "--adopt")
    commands.run("sweep")
    exported = commands.run("events", "export").stdout.splitlines()
    events = [json.loads(line) for line in exported]
    assert [
        event["data"]["adopted_from"] for event in events if event["type"] == "reaping.resumed"
    ] == ["another"]


def test_stats_tell_that_the_logs_newest_events_are_lost(commands: Commands) -> None:
    """As after the promotion of a standby that lagged; /readyz of a replica says that it pauses."""
    commands.grant()
    commands.run("sweep", exits=3)
    assert commands.json("stats")["mark_problem"] is None
    commands.sql("UPDATE event_head SET position = 1")
    told = commands.run("stats").stdout
    lost = "the log ends at 1, but 2 was published: its newest events are lost"
    assert f"paused: {lost}" in told
    assert f"Nothing is overdue. Reaping is paused: {lost}." in told
    overdue(commands)
    assert f" s; reaping is paused: {lost}." in commands.run("stats", exits=1).stdout


@pytest.mark.skipif(ON_S3, reason="only a folder could be made by looking")
def test_stats_make_no_store(commands: Commands) -> None:
    nowhere = commands.data_dir / "no" / "such"
    told = json.loads(commands.run("stats", "--json", MPACK_DATA_DIR=str(nowhere)).stdout)
    assert (told["mark_is_read"], told["mark_problem"]) == (True, None)
    assert not nowhere.exists()


@pytest.mark.skipif(ON_S3, reason="a folder is easily no store any more")
def test_stats_say_that_the_store_does_not_answer(commands: Commands) -> None:
    told = commands.run("stats", MPACK_DATA_DIR=__file__).stdout
    assert "no replica is running; the store did not show its mark" in told


def test_stats_say_in_words_that_nothing_is_done(commands: Commands) -> None:
    assert commands.json("stats")["words"] == "Nothing is overdue."
    commands.grant()
    overdue(commands)
    result = commands.run("stats", exits=1)
    assert "1 lease is overdue and not being done" in result.stdout
    assert "no replica is running" in result.stdout


def test_sweep_leaves_alone_what_is_hardly_overdue(commands: Commands) -> None:
    commands.grant(ended=True)
    commands.run("sweep", "--older-than", "10m", exits=3)
    commands.run("sweep", "--older-than", "10m", "--dry-run", exits=3)
    commands.run("sweep", "--older-than", "ten", exits=2)
    commands.run("sweep", "--older-than", "999999999w", exits=2)
    commands.run("lease", "list", "--since", "999999999w", exits=2)
    overdue(commands)
    assert commands.json("sweep", "--older-than", "10m")["reclaimed"] == 1


def test_orphans_are_told_before_they_are_touched(commands: Commands) -> None:
    gone = commands.grant(ended=True)
    key = str(lease_of(commands, gone)["storage_key"])
    commands.run("sweep")
    commands.view.write([key, "transient/strange"], b"back again")
    told = commands.json("sweep", "--orphans", "--dry-run", exits=4)
    assert (told["residue_deleted"], told["findings_count"]) == (1, 1)
    assert commands.blobs() == 2
    assert "foreign_key" in commands.run("sweep", "--orphans", exits=4).stdout
    assert commands.blobs() == 1
    assert last_event(commands, gone)["type"] == "lease.residue_deleted"
    commands.run("sweep", "--orphans", "--limit", "1", exits=2)


@pytest.mark.parametrize(
    "words", [["sweep"], ["gc"], ["object", "purge", "00", "--reason", "x", "--yes"]], ids=" ".join
)
def test_nothing_is_deleted_from_a_folder_that_is_not_there(
    commands: Commands, tmp_path: Path, words: list[str]
) -> None:
    """In one that it made itself a sweep would find every blob gone, and record it so."""
    environ = {name: text for name, text in commands.environ.items() if "_S3_" not in name}
    here = Commands(commands.database_url, tmp_path / "here")
    here.environ = environ | {"MPACK_DATA_DIR": str(tmp_path / "elsewhere")}
    mpack_id = commands.grant(ended=True)
    assert "MPACK_DATA_DIR" in here.run(*words, exits=75).stderr
    assert not (tmp_path / "elsewhere").exists()
    assert lease_of(commands, mpack_id)["state"] == "active"


def test_people_are_told_the_counts_and_not_a_thousand_ids(commands: Commands) -> None:
    """After an outage the ids would push the counts off the screen."""
    ids = {commands.grant(ended=True) for _ in range(11)}
    told = commands.run("sweep").stdout
    assert "reclaimed        11" in told
    assert sum(one in told for one in ids) == 10
    assert "--json names more" in told


def test_watch_sweeps_until_it_is_told_to_stop(commands: Commands) -> None:
    """As a real process: Ctrl-C is a signal."""
    commands.grant(ended=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "sweep", "--watch", "--json"],
        env=commands.whole_environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        assert first["reclaimed"] == 1
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
        assert "Traceback" not in process.communicate()[1]
    finally:
        process.kill()


@pytest.mark.parametrize("output", ["json", "text"])
def test_tail_follows_the_log(commands: Commands, output: str) -> None:
    first = commands.grant()
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "events", "tail", "--last", "1"]
        + (["--json"] if output == "json" else []),
        env=commands.whole_environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert f"lease/{first}" in process.stdout.readline()
        second = commands.grant()
        lines = [process.stdout.readline() for _ in range(2)]
        assert all(second in line for line in lines)
        assert ["lease.reserved" in lines[0], "lease.activated" in lines[1]] == [True, True]
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
        assert process.communicate()[1] == ""
    finally:
        process.kill()
