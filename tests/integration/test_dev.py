"""`mpack-gateway dev` as a process: nothing to configure, nothing left behind, no fear of -9."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.demo.process import GatewayProcess


@pytest.fixture
def gateway(open_folder: Path) -> Iterator[GatewayProcess]:
    process = GatewayProcess(open_folder / "dev", {}, log_file=open_folder / "log")
    yield process
    process.close()
    process.remove()


def test_a_life_from_first_start_to_a_second_one(gateway: GatewayProcess) -> None:
    gateway.start()
    token_file = gateway.folder / "admin-token"
    assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
    assert stat.S_IMODE((gateway.folder / "mpack.env").stat().st_mode) == 0o600
    assert gateway.run("lease", "list").returncode == 3  # None yet, and said so.
    assert gateway.run("audit", "verify").returncode == 0
    assert gateway.token not in gateway.log_file.read_text()

    second = gateway.run("dev", "--data", str(gateway.folder), "--port", "0")
    assert second.returncode == 75
    assert f"already served by process {gateway.pid} at {gateway.url}" in second.stderr

    token = gateway.token
    assert gateway.stop() == 0
    assert gateway.database_processes() == []
    assert not (gateway.folder / "mpack.env").exists()

    gateway.start()
    assert gateway.token == token
    assert gateway.stop() == 0


def test_a_taken_port_is_said_in_one_sentence(gateway: GatewayProcess, open_folder: Path) -> None:
    gateway.start()
    port = gateway.url.rpartition(":")[2]
    other = gateway.run("dev", "--data", str(open_folder / "other"), "--port", port)
    assert other.returncode == 75
    assert f"127.0.0.1:{port} cannot be listened on" in other.stderr
    assert len(other.stderr.strip().splitlines()) == 1


def test_it_starts_again_after_kill_9(gateway: GatewayProcess) -> None:
    gateway.start()
    for _ in range(2):
        gateway.kill()
        gateway.start()
        assert gateway.run("audit", "verify").returncode == 0
    assert gateway.stop() == 0
    assert gateway.database_processes() == []


def test_a_lost_token_is_made_anew(gateway: GatewayProcess) -> None:
    gateway.start()
    gateway.stop()
    (gateway.folder / "admin-token").write_text("mpk_wrong\n")
    gateway.start()
    assert gateway.token.startswith("mpk_")
    assert gateway.token != "mpk_wrong"
