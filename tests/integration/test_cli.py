"""The command line: data on stdout, talk on stderr, exit codes that mean something."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy.engine import make_url

from gateway.cli import main
from leases.errors import Unavailable
from leases.owner import OWNER_KEY, Mark
from tests.integration.commands import Commands


def test_without_a_database_a_sentence_says_so() -> None:
    result = CliRunner().invoke(main, ["lease", "list"], env={"MPACK_DATABASE_URL": ""})
    assert result.exit_code == 2
    assert "MPACK_DATABASE_URL is needed" in result.stderr
    assert result.stdout == ""


def test_config_show_hides_secrets(commands: Commands) -> None:
    url = "postgresql://u:hunter2@h/d"
    told = commands.run("config", "show", "--database-url", url)
    assert "hunter2" not in told.output
    assert "MPACK_TTL_DEFAULT_SECONDS" in told.stdout
    assert commands.json("config", "show")["ttl_default_seconds"] == 300


def test_db_upgrade_migrates_an_empty_database(commands: Commands) -> None:
    commands.sql("DROP SCHEMA public CASCADE")
    commands.sql("CREATE SCHEMA public")
    assert "db upgrade" in commands.run("lease", "list", exits=75).stderr
    assert "db upgrade" in commands.run("serve", exits=75).stderr
    commands.run("db", "upgrade")
    commands.run("db", "upgrade")
    commands.run("lease", "list", exits=3)


def test_an_unreachable_database_means_try_later(commands: Commands, tmp_path: Path) -> None:
    url = f"postgresql://u@/d?host={tmp_path}"
    commands.data_dir.mkdir(exist_ok=True)
    for verb in (["lease", "list"], ["db", "upgrade"], ["sweep"], ["serve"]):
        result = commands.run(*verb, exits=75, MPACK_DATABASE_URL=url)
        assert "does not answer" in result.stderr
        assert "Traceback" not in result.output


@pytest.mark.parametrize("who", ["nobody@/", "@/nothing"], ids=["login", "database"])
def test_a_database_that_refuses_is_said_to(commands: Commands, who: str) -> None:
    """It answers, and trying again does not mend it."""
    url = make_url(commands.database_url)
    query = f"host={url.query['host']}&port={url.query['port']}"
    user, _, name = who.partition("@/")
    told = f"postgresql://{user or url.username}@/{name or url.database}?{query}"
    result = commands.run("lease", "list", exits=75, MPACK_DATABASE_URL=told)
    assert "does not allow that" in result.stderr
    assert "does not exist" in result.stderr


def test_a_token_is_printed_once_on_stdout(commands: Commands) -> None:
    result = commands.run("token", "create", "--name", "ci", "--scope", "push", "--repo", "o/r",
                          "--expires", "30d")  # fmt: skip
    secret = result.stdout.strip()
    assert re.fullmatch(r"mpk_[0-9a-f]{48}", secret)
    assert secret not in result.stderr
    assert commands.sql("SELECT scopes[1] || ' ' || repos[1] FROM api_tokens") == "push o/r"
    assert commands.sql("SELECT expires_at - created_at > '29 days' FROM api_tokens") is True
    token_id = str(commands.sql("SELECT token_id FROM api_tokens"))
    commands.run("token", "revoke", token_id)
    commands.run("token", "revoke", token_id, exits=3)


@pytest.mark.parametrize(
    "options",
    [
        ["--scope", "push"],
        ["--name", "x"],
        ["--name", " ", "--scope", "push"],
        ["--name", "x", "--scope", "root"],
        ["--name", "x", "--scope", "push", "--repo", "nothing"],
        ["--name", "x", "--scope", "admin", "--repo", "o/r"],
        ["--name", "x", "--scope", "push", "--expires", "soon"],
        ["--name", "x", "--scope", "push", "--expires", "2020-01-01"],
    ],
)
def test_a_token_that_makes_no_sense_is_refused(commands: Commands, options: list[str]) -> None:
    assert commands.run("token", "create", *options, exits=2).stdout == ""
    assert commands.sql("SELECT count(*) FROM api_tokens") == 0


def test_repo_create_prints_the_id(commands: Commands) -> None:
    first = commands.run("repo", "create", "o/r", "--private")
    again = commands.run("repo", "create", "o/r")
    assert first.stdout == again.stdout
    assert "it is private" in again.stderr
    assert commands.sql("SELECT visibility FROM repos") == "private"
    commands.run("repo", "create", "nothing", exits=2)
    commands.run("repo", "create", "../etc/x", exits=2)
    assert "gateway's own" in commands.run("repo", "create", "v1/x", exits=2).stderr


def test_sweep_reaps_what_is_due(commands: Commands) -> None:
    due, open_ = commands.grant(ended=True), commands.grant()
    told = commands.json("sweep", "--dry-run")
    assert told["mpack_ids"] == [due]
    assert commands.blobs() == 2
    told = commands.json("sweep", "--limit", "5")
    assert (told["reclaimed"], told["mpack_ids"]) == (1, [due])
    assert commands.blobs() == 1
    commands.run("sweep", exits=3)
    show = commands.json("lease", "show", due)
    assert show["state"] == "reclaimed"
    events = show["events"]
    assert isinstance(events, list)
    assert events[-1]["type"] == "lease.reclaimed"
    assert events[-1]["data"]["trigger"] == "command"
    assert commands.json("lease", "show", open_)["state"] == "active"


def test_sweep_leaves_another_logs_store_alone(commands: Commands) -> None:
    commands.grant(ended=True)
    commands.view.write([OWNER_KEY], Mark(log_id="another", position=0, hash="").dump())
    result = commands.run("sweep", exits=75)
    assert "paused" in result.stderr
    assert "another" in result.stderr
    assert commands.blobs() == 1


def test_lease_list_pages_and_filters(commands: Commands) -> None:
    ids = sorted([commands.grant() for _ in range(3)], reverse=True)
    first = commands.json("lease", "list", "--limit", "2")
    assert [lease["mpack_id"] for lease in first["leases"]] == ids[:2]  # type: ignore[attr-defined]  # JSON
    rest = commands.json("lease", "list", "--cursor", str(first["next"]))
    assert [lease["mpack_id"] for lease in rest["leases"]] == ids[2:]  # type: ignore[attr-defined]  # JSON
    table = commands.run("lease", "list", "--state", "active").stdout.splitlines()
    assert table[0].split("\t")[0] == "mpack_id"
    assert len(table) == 4
    commands.run("lease", "list", "--state", "stuck", exits=3)
    commands.run("lease", "list", "--repo", "o/absent", exits=3)


def test_a_unique_beginning_names_a_lease(commands: Commands) -> None:
    first = commands.grant()
    assert first in commands.run("lease", "show", first[:25]).stdout
    commands.grant()
    assert "more than one" in commands.run("lease", "show", first[:2], exits=2).stderr
    commands.run("lease", "show", "ffff", exits=3)
    commands.run("lease", "show", "../x", exits=2)


def test_audit_finds_and_mends_a_changed_row(commands: Commands) -> None:
    mpack_id = commands.grant()
    assert commands.json("audit", "verify")["ok"] is True
    commands.sql(f"UPDATE mpack_leases SET size_bytes = 9 WHERE mpack_id = '{mpack_id}'")
    assert "audit rebuild" in commands.run("audit", "verify", exits=1).stderr
    verdict = commands.json("audit", "verify", exits=1)
    assert verdict["ok"] is False
    assert commands.json("audit", "rebuild") == {"rows_changed": 1}
    assert commands.json("audit", "verify")["ok"] is True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(url: str, process: subprocess.Popen[str]) -> dict[str, object]:
    """Ask until it answers; the process ending is an answer, too."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while process.poll() is None:
        try:
            with opener.open(url, timeout=5) as answer:
                value = json.loads(answer.read())
                assert isinstance(value, dict)
                return value
        except OSError:
            asyncio.run(asyncio.sleep(0.05))
    raise Unavailable(f"the server ended with {process.returncode}")


def event_of(line: str) -> str:
    """A line that is no event is told as it is."""
    try:
        return str(json.loads(line)["event"])
    except ValueError:
        pytest.fail(f"not a line of the log: {line!r}")


def test_a_taken_port_means_try_later(commands: Commands) -> None:
    """As a real process: the server ends itself, with a code of its own."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "gateway", "serve", "--port", port],
            env=os.environ | commands.environ, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 75, done.stderr
    assert "address already in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_store_that_cannot_be_opened_is_said_in_a_sentence(
    commands: Commands, tmp_path: Path
) -> None:
    """The last line, behind the server's traceback; by the store's own exit code."""
    (tmp_path / "file").touch()
    told = {"MPACK_DATABASE_URL": commands.database_url, "MPACK_DATA_DIR": str(tmp_path / "file")}
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "serve", "--port", "0"],
        env=os.environ | told, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 75, done.stderr
    assert done.stderr.splitlines()[-1].startswith("The object store does not answer")


def test_serve_serves_and_ends_on_sigterm(commands: Commands) -> None:
    """As a real process: the event loop, the signals and the log are the real ones."""
    port = free_port()
    commands.grant(ended=True)
    with subprocess.Popen(
        [sys.executable, "-m", "gateway", "serve", "--port", str(port)],
        env=os.environ | commands.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            ready = wait_until_ready(f"http://127.0.0.1:{port}/readyz", process)
            assert ready["status"] in ("ok", "degraded")
            assert process.stdout is not None
            assert process.stderr is not None
            for line in process.stderr:
                if event_of(line) == "start_up_sweep":
                    break
            process.send_signal(signal.SIGTERM)
            events = [event_of(line) for line in process.stderr]
            assert process.stdout.read() == ""
            assert process.wait(timeout=30) in (0, -signal.SIGTERM)
        finally:
            process.kill()
    assert "Application shutdown complete." in events
    assert commands.blobs() == 0
