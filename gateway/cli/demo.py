"""`mpack-gateway demo`: the whole life of a pack, shown and checked."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from gateway.cli.exits import Exit, told
from gateway.endings import ended_by_signals, undisturbed

if TYPE_CHECKING:
    from gateway.demo.process import GatewayProcess
    from gateway.demo.report import Report
    from gateway.demo.store import DemoStore

# Sharing is for TTLs of half a minute and more; nobody wants to watch that long.
_SETTINGS = {"MPACK_SHARE_TTL_MIN_SECONDS": "0.5", "MPACK_SHARE_GUARD_SECONDS": "0.2"}


@click.command()
@click.option(
    "--repo", envvar="DEMO_REPO", type=click.Path(path_type=Path), default=Path(),
    metavar="DIR", help="The Git repository to show (DEMO_REPO); by default the one here.",
)  # fmt: skip
@click.option(
    "--ttl", envvar="DEMO_TTL", type=click.FloatRange(1, 600), default=10.0, show_default=True,
    metavar="SECONDS", help="How long the first pack's URL lives (DEMO_TTL).",
)  # fmt: skip
@click.option(
    "--store", envvar="DEMO_STORE", type=click.Choice(["local", "s3"]), default="local",
    show_default=True, help="A folder, or a real S3 that is started for it (DEMO_STORE).",
)  # fmt: skip
@click.option("--keep", envvar="KEEP", is_flag=True, help="Stay up afterwards (KEEP=1).")
def demo(*, repo: Path, ttl: float, store: Literal["local", "s3"], keep: bool) -> None:
    """See the whole life of a pack in a minute, with every claim checked.

    A real gateway process, a real Git history, kill -9 included; nothing is left behind but the
    gateway's log. The exit code is 0 only if everything was true.
    """
    from gateway.demo.report import Report

    report = Report()
    began = time.monotonic()
    with told(), ended_by_signals(), _scratch() as scratch, _opened(store, scratch) as blobs:
        gateway = _gateway(scratch, blobs)
        try:
            _tell(report, gateway, blobs, scratch=scratch, repo=repo.absolute(), ttl=ttl)
            took = time.monotonic() - began
            if keep:
                _stay(gateway)
        finally:
            with undisturbed():
                _leave(report, gateway, blobs)
    click.echo()
    if report.failed:
        click.secho(f"Not everything held: {'; '.join(report.failed)}", fg="red", bold=True)
        raise SystemExit(Exit.FAILED)
    click.secho(f"All of it held, in {took:.0f} s.", bold=True)


@contextmanager
def _opened(kind: Literal["local", "s3"], scratch: Path) -> Iterator[DemoStore]:
    from gateway.demo.store import open_store

    store = open_store(kind, scratch / "gateway", scratch)
    try:
        yield store
    finally:
        with undisturbed():
            store.close()


def _gateway(scratch: Path, store: DemoStore) -> GatewayProcess:
    from gateway.demo.process import GatewayProcess

    handle, log_file = tempfile.mkstemp(prefix="mpack-gateway-demo-", suffix=".log")
    os.close(handle)
    settings = _SETTINGS | dict(store.settings())
    return GatewayProcess(scratch / "gateway", settings, log_file=Path(log_file))


def _tell(
    report: Report,
    gateway: GatewayProcess,
    store: DemoStore,
    *,
    scratch: Path,
    repo: Path,
    ttl: float,
) -> None:
    from gateway.demo.sources import open_source
    from gateway.demo.story import Stage, tell

    source = open_source(repo, scratch)
    with source.history:
        stage = Stage(
            report=report,
            gateway=gateway,
            store=store,
            source=source,
            scratch=scratch,
            ttl_seconds=ttl,
        )
        tell(stage)


def _stay(gateway: GatewayProcess) -> None:
    from gateway.cli.search_path import search_path_lines
    from gateway.demo.story import OWNER_AND_REPO

    authorized = 'curl -H "Authorization: Bearer $token"'
    lines = [
        "",
        f"It stays up at {gateway.url}. Try, in another terminal:",
        f"  curl {gateway.url}/readyz",
        f"  token=$(cat {gateway.folder / 'admin-token'})",
        f"  {authorized} {gateway.url}/v1/leases",
        f"  {authorized} -H 'Accept: application/json' {gateway.url}/{OWNER_AND_REPO}/refs",
        f"  set -a; . {gateway.folder / 'mpack.env'}; set +a",
        *(f"  {line}" for line in search_path_lines()),
        "  mpack-gateway lease list",
        "  mpack-gateway audit verify",
        "",
        "Ctrl-C ends it and leaves nothing running.",
    ]
    click.echo("\n".join(lines))
    try:
        gateway.wait()
    except SystemExit:
        click.echo()


def _leave(report: Report, gateway: GatewayProcess, store: DemoStore) -> None:
    """End the gateway and its store, and see that they are gone."""
    code = gateway.stop()
    store.close()
    left = [*gateway.database_processes(), *store.pids()]
    gateway.close()
    gateway.remove()
    if code is not None:
        report.chapter("The end")
        report.check("the gateway ended when it was told to", code == 0, f"exit code {code}")
        report.check("nothing is left running", not left, f"{len(left)} processes")


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder for everything, gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="mpack-gateway-demo-"))
    try:
        folder.chmod(0o711)  # Started by root, PostgreSQL's own account passes through it.
        yield folder
    finally:
        with undisturbed():
            shutil.rmtree(folder, ignore_errors=True)
