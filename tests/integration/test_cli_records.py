"""The verbs of the log, of tokens and repositories, of the schema and the settings."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from datetime import datetime
from pathlib import Path
from uuid import UUID

import pytest
from click.testing import CliRunner

from gateway.cli import main
from gateway.environment import named_fields
from gateway.settings import Settings
from leases.chain import StoredEvent, event_hash, genesis
from leases.codec import dump
from tests.integration.commands import Commands


def test_the_exported_log_proves_itself(commands: Commands, tmp_path: Path) -> None:
    """Without the database: every hash follows from the lines alone."""
    commands.grant(ended=True)
    commands.run("sweep")
    file = tmp_path / "log.ndjson"
    commands.run("events", "export", "--output", str(file))
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == 4
    previous = genesis(UUID(str(commands.sql("SELECT log_id FROM event_head"))))
    for line in lines:
        data = dump(line.pop("data"))
        stated = bytes.fromhex(line.pop("hash"))
        line["event_id"] = UUID(line["event_id"])
        line["recorded_at"] = datetime.fromisoformat(line["recorded_at"])
        sha = hashlib.sha256(data.encode()).digest()
        previous = event_hash(previous, StoredEvent(**line, data=data, data_sha=sha, hash=b""))
        assert previous == stated


@pytest.mark.parametrize(
    "words", [["events", "export", "--output", "/dev/full"], ["config", "show"]]
)
def test_a_full_disk_is_said_in_one_sentence(commands: Commands, words: list[str]) -> None:
    """As a real process: its stdout is the full disk, too."""
    commands.grant()
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "gateway", *words],
            env=commands.whole_environ, stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert "could not be written: No space left on device." in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_export_takes_a_part(commands: Commands) -> None:
    commands.grant()
    assert len(commands.run("events", "export", "--after", "1").stdout.splitlines()) == 1
    commands.run("events", "export", "--until", "1h", exits=3)
    assert len(commands.run("events", "export", "--since", "1h").stdout.splitlines()) == 2
    commands.run("events", "export", "--since", "yesterday", exits=2)


def test_the_report_tells_how_the_promise_was_kept(commands: Commands) -> None:
    commands.run("audit", "report", exits=3)
    for _ in range(2):
        commands.grant(ended=True)
    commands.run("sweep")
    told = commands.json("audit", "report", "--since", "1h")
    assert told["ok"] is True
    assert str(told["words"]).startswith("2 packs deleted, 0 before their deadline, 0 twice;")
    assert told["by_outcome"] == [{"outcome": "deleted", "trigger": "command", "leases": 2}]
    assert "lease.reclaimed" in commands.run("audit", "report").stdout
    commands.sql("UPDATE mpack_leases SET delete_at = delete_at + interval '1 hour'")
    assert commands.json("audit", "report", exits=1)["ok"] is False


def test_verify_tells_how_far_it_is_on_stderr(commands: Commands) -> None:
    commands.grant()
    assert "verified: 2 of 2" in commands.run("audit", "verify").stderr


def test_tokens_are_listed_without_their_secrets(commands: Commands) -> None:
    commands.run("token", "list", exits=3)
    made = commands.json("token", "create", "--name", "ci", "--scope", "read")
    other = commands.json("token", "create", "--name", "cd", "--scope", "push", "--repo", "o/r")
    table = commands.run("token", "list").stdout
    assert str(made["secret"]) not in table
    assert "o/r" in table
    assert commands.json("token", "revoke", str(made["token_id"])) == {"token_id": made["token_id"]}
    commands.run("token", "revoke", "01", exits=2)
    commands.run("token", "revoke", "zz", exits=3)
    left: dict[str, object] = commands.json("token", "list")["tokens"][0]  # type: ignore[index]  # JSON
    assert left["token_id"] == other["token_id"]
    assert len(commands.json("token", "list", "--all")["tokens"]) == 2  # type: ignore[arg-type]  # JSON
    assert commands.run("token", "revoke", str(other["token_id"])[:30]).exit_code == 0


def test_a_deleted_repo_is_nobodys(commands: Commands) -> None:
    repo_id = commands.json("repo", "create", "o/r")["repo_id"]
    commands.json("repo", "create", "p/r")
    assert "o/r" in commands.run("repo", "list").stdout
    commands.run("repo", "delete", "o/r", exits=2)
    assert commands.json("repo", "delete", "o/r", "--yes")["repo_id"] == repo_id
    commands.run("repo", "delete", "o/r", "--yes", exits=3)
    commands.run("repo", "list", "--owner", "o", exits=3)
    assert "o/r" in commands.run("repo", "list", "--deleted").stdout
    assert "gc" in commands.run("repo", "create", "o/r", exits=3).stderr
    assert commands.sql("SELECT count(*) FROM events WHERE type = 'repo.deleted'") == 1


def test_db_tells_its_revision_and_its_drift(commands: Commands) -> None:
    assert commands.json("db", "current") == {"revision": "0001", "expected": "0001"}
    assert commands.json("db", "check") == {"ok": True, "problem": None}
    commands.sql("ALTER TABLE repos ADD COLUMN colour text")
    assert "colour" in str(commands.json("db", "check", exits=1)["problem"])
    commands.sql("DELETE FROM alembic_version")
    assert commands.json("db", "current", exits=75)["revision"] is None


def test_db_sql_makes_the_same_database(commands: Commands) -> None:
    statements = commands.run("db", "sql").stdout
    commands.sql("DROP SCHEMA public CASCADE")
    commands.sql("CREATE SCHEMA public")
    commands.sql_script(statements)
    commands.run("db", "check")
    commands.grant()
    commands.run("audit", "verify")
    commands.run("db", "sql", "--from", "nonsense", exits=2)


def test_config_check_lists_every_problem(commands: Commands) -> None:
    commands.run("config", "check")
    result = commands.run("config", "check", exits=2, MPACK_PORT="x", MPACK_NONSENSE="1")
    assert "MPACK_PORT" in result.stderr
    assert "MPACK_NONSENSE" in result.stderr


def test_the_example_can_be_read_back(commands: Commands) -> None:
    lines = commands.run("config", "example").stdout.splitlines()[1:]
    pairs = dict(line.lstrip("#").split("=", 1) for line in lines)
    assert list(pairs) == [item.variable for item in named_fields(Settings)]
    result = CliRunner().invoke(main, ["config", "check"], env=pairs)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    "said",
    [
        b"SSH-2.0-x\r\n",
        b"HTTP/1.0 200 OK\r\n\r\n[]",
        b'HTTP/1.0 200 OK\r\n\r\n{"status": "UP", "checks": [{"name": "disk"}]}',
        b'HTTP/1.0 200 OK\r\n\r\n{"status": "pass", "checks": {"disk": [{"status": "pass"}]}}',
    ],
    ids=["ssh", "list", "list of checks", "lists in checks"],
)
def test_healthcheck_of_something_else_is_try_later(commands: Commands, said: bytes) -> None:
    """A wrong port is a usual slip."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(said)

        answering = threading.Thread(target=answer)
        answering.start()
        result = commands.run("healthcheck", "--url", url, exits=75)
        answering.join()
    assert "does not answer as a gateway does" in result.stderr


def test_healthcheck_without_a_gateway_is_try_later(commands: Commands) -> None:
    commands.run("healthcheck", "--url", "http://127.0.0.1:9", exits=75)
    commands.run("healthcheck", "--url", "ftp://x", exits=2)
    assert commands.json("healthcheck", exits=75)["status"] == "no answer"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script(commands: Commands, shell: str) -> None:
    assert "_MPACK_GATEWAY_COMPLETE" in commands.run("completion", shell).stdout


def test_completion_completes() -> None:
    """What the shell's function asks the program."""
    asked = {"_MPACK_GATEWAY_COMPLETE": "bash_complete", "COMP_CWORD": "2"}
    done = subprocess.run(
        [sys.executable, "-c", "from gateway.cli import main; main(prog_name='mpack-gateway')"],
        env=os.environ | asked | {"COMP_WORDS": "mpack-gateway lease f"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "plain,forget" in done.stdout
