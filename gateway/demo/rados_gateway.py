"""A throwaway Ceph RADOS Gateway, a real S3 server, for the demonstration and the tests.

One monitor, one object store in memory and one gateway, all on 127.0.0.1, as children of this
process: what is stored lives as long as they do. Their programs come from Debian or Ubuntu
packages; nobody else's Ceph is touched.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, build_opener
from uuid import UUID

from leases.errors import Unavailable
from leases.ids import new_event_id, new_token

PACKAGES = "radosgw ceph-mon ceph-osd"
HOW_TO_GET_IT = f"apt-get install --no-install-recommends {PACKAGES}"
REGION = "us-east-1"
_PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
_START_SECONDS_MAX = 60.0  # A few seconds here; much more on a machine that does other things.
_STOP_SECONDS_MAX = 5.0
_POLL_SECONDS = 0.02
_ATTEMPTS = 3  # A port may be taken in the moment between being found free and being used.
_COMMAND_TRIES = 5
_STORE_TRIES = 3
_STORE_BYTES = 4 << 30  # A limit, not an allocation.
_BUCKETS_MAX = 1_000_000  # Ceph's own default, 1,000, is less than the tests have.

_CONFIGURATION = """\
[global]
fsid = {fsid}
mon_initial_members = a
mon_host = v1:127.0.0.1:{mon_port}
public_network = 127.0.0.0/8
cluster_network = 127.0.0.0/8
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_msgr2 = false
ms_bind_ipv6 = false
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
run_dir = {folder}/run
admin_socket = {folder}/run/$name.$pid.asok
log_file = {folder}/log/$name.log
log_to_stderr = false
mon_cluster_log_to_file = false
crash_dir = {folder}/run
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pgp_num = 8
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
paxos_propose_interval = 0.02
paxos_min_wait = 0.01
setuser_match_path = {folder}
[mon]
mon_data = {folder}/mon
mon_data_avail_warn = 1
mon_data_avail_crit = 1
[osd]
osd_data = {folder}/osd
osd_objectstore = memstore
memstore_device_bytes = {store_bytes}
osd_op_num_shards = 2
osd_op_num_threads_per_shard = 1
osd_class_update_on_start = false
[client.rgw.a]
rgw_frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw_thread_pool_size = 64
rgw_enable_usage_log = false
rgw_enable_ops_log = false
rgw_dynamic_resharding = false
rgw_enable_quota_threads = false
rgw_data = {folder}
[client]
rgw_rados_pool_pg_num_min = 8
"""


class RadosGatewayMissing(Unavailable):
    """The programs of the Ceph RADOS Gateway are not installed."""

    code = "rados_gateway_missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class S3User:
    """Whom the gateway lets in."""

    name: str
    access_key: str
    secret_key: str

    @classmethod
    def new(cls, name: str) -> Self:
        """A user with keys that nobody has seen."""
        return cls(name=name, access_key=new_token(15), secret_key=new_token(30))


def check_installed() -> None:
    """Errors: RadosGatewayMissing, which says what to install."""
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    if missing:
        raise RadosGatewayMissing(
            f"There is no {', '.join(missing)} here. On Debian or Ubuntu: {HOW_TO_GET_IT}"
        )


class RadosGateway:
    """One server in a folder of its own, which is emptied at the start.

    Start it from the main thread: the kernel ties the servers' end to the thread that started
    them, so that none outlives this process, however it ends.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.user = S3User.new("owner")
        self.port = 0
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def endpoint(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pids(self) -> list[int]:
        """The servers' process ids; the last one speaks S3."""
        return [process.pid for process in self._processes]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def start(self) -> None:
        """Run it, and return when it answers.

        Errors: RadosGatewayMissing; Unavailable with what went wrong.
        """
        check_installed()
        for attempt in range(_ATTEMPTS):
            try:
                self._start()
                return
            except Unavailable:
                self.stop()
                if attempt == _ATTEMPTS - 1:
                    raise
            except BaseException:
                self.stop()
                raise

    def stop(self) -> None:
        """End it at once: what it holds is in memory and gone with it."""
        for process in reversed(self._processes):
            process.kill()
        for process in self._processes:
            process.wait(_STOP_SECONDS_MAX)
        self._processes.clear()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open, nobody answers."""
        self._processes[-1].send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on where it was frozen."""
        self._processes[-1].send_signal(signal.SIGCONT)

    def add_user(self, user: S3User) -> None:
        """Let somebody else in; without a bucket policy they may do nothing to others' buckets."""
        self._run(
            [
                *("radosgw-admin", *self._configured, "-n", "client.rgw.a", "user", "create"),
                *("--uid", user.name, "--display-name", user.name),
                *("--max-buckets", str(_BUCKETS_MAX)),
                *("--access-key", user.access_key, "--secret-key", user.secret_key),
            ]
        )

    # Starting. -----------------------------------------------------------------------------------

    @property
    def _configured(self) -> list[str]:
        return ["-c", str(self.folder / "ceph.conf")]

    def _start(self) -> None:
        fsid, mon_port = new_event_id(), _free_port()
        self.port = _free_port()
        self._prepare(fsid, mon_port)
        self._start_monitor(fsid, mon_port)
        self._start_store()
        self.add_user(self.user)
        self._launch("radosgw", "-n", "client.rgw.a")
        self._wait_for(self._answers)

    def _prepare(self, fsid: UUID, mon_port: int) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        for name in ("mon", "osd", "run", "log"):
            (self.folder / name).mkdir(parents=True, mode=0o700)
        told = _CONFIGURATION.format(
            fsid=fsid,
            folder=self.folder,
            mon_port=mon_port,
            port=self.port,
            store_bytes=_STORE_BYTES,
        )
        (self.folder / "ceph.conf").write_text(told)

    def _start_monitor(self, fsid: UUID, mon_port: int) -> None:
        address, map_file = f"v1:127.0.0.1:{mon_port}", str(self.folder / "monmap")
        self._run(
            ["monmaptool", "--create", "--addv", "a", f"[{address}]", "--fsid", str(fsid), map_file]
        )
        self._run(["ceph-mon", *self._configured, "-i", "a", "--mkfs", "--monmap", map_file])
        self._launch("ceph-mon", "-i", "a", "--public-addr", address)

    def _start_store(self) -> None:
        store_id = str(new_event_id())
        self._run(["ceph", *self._configured, "osd", "new", store_id])
        self._run(["ceph-osd", *self._configured, "-i", "0", "--mkfs", "--osd-uuid", store_id])
        for tries_left in reversed(range(_STORE_TRIES)):
            store = self._launch("ceph-osd", "-i", "0")
            try:
                self._wait_for(partial(_is_active, self.folder / "run" / f"osd.0.{store.pid}.asok"))
            except Unavailable:
                if store.poll() is None or not tries_left:
                    raise  # What ended lost the race for the cluster's id, as clients do.
                self._processes.remove(store)
            else:
                return

    def _launch(self, program: str, *words: str) -> subprocess.Popen[bytes]:
        """A server that stays in the foreground, so that it is ours to end."""
        command = [program, *self._configured, "-f", *words]
        setpriv = shutil.which("setpriv")
        if setpriv and threading.current_thread() is threading.main_thread():
            command = [setpriv, "--pdeathsig", "KILL", "--", *command]
        with (self.folder / "log" / f"{program}.out").open("ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # A terminal's Ctrl-C is not for them.
            )
        self._processes.append(process)
        return process

    def _run(self, command: Sequence[str]) -> None:
        """A command to its end. Clients of a monitor that has just started now and then lose a
        race for the cluster's id; every command here may be repeated.
        """
        said = ""
        for _ in range(_COMMAND_TRIES):
            try:
                done = subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    timeout=_START_SECONDS_MAX,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                said = "no answer"
                continue
            if done.returncode == 0:
                return
            said = done.stdout.decode(errors="replace").strip()[-500:]
            time.sleep(0.2)
        raise Unavailable(f"The RADOS Gateway did not start: {command[0]}: {said}")

    def _wait_for(self, ready: Callable[[], bool]) -> None:
        began = time.monotonic()
        while not ready():
            ended = [process for process in self._processes if process.poll() is not None]
            if ended or time.monotonic() - began > _START_SECONDS_MAX:
                why = f"{ended[0].args!r} ended" if ended else "it did not answer in time"
                raise Unavailable(f"The RADOS Gateway did not start: {why}; see {self.folder}/log.")
            time.sleep(_POLL_SECONDS)

    def _answers(self) -> bool:
        try:
            with build_opener(ProxyHandler({})).open(self.endpoint, timeout=2):
                return True
        except HTTPError:
            return True
        except (URLError, OSError):
            return False


def _is_active(admin_socket: Path) -> bool:
    return bool(_status(admin_socket).get("state") == "active")


def _status(admin_socket: Path) -> dict[str, Any]:
    """What a server says about itself on its admin socket: a length, then JSON."""
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(2)
            client.connect(os.fspath(admin_socket))
            client.sendall(b'{"prefix": "status"}\0')
            (length,) = struct.unpack(">I", client.recv(4, socket.MSG_WAITALL))
            told: dict[str, Any] = json.loads(client.recv(length, socket.MSG_WAITALL))
            return told
    except (OSError, ValueError, struct.error):
        return {}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
