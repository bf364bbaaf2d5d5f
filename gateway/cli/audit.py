"""`mpack-gateway audit`: the log must hold together, the lease table follow from it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from gateway.cli.exits import Exit, run
from gateway.cli.options import database_url_option, json_option, quiet_logs, settings_of
from gateway.cli.output import print_json, print_pairs
from gateway.settings import Settings


@click.group()
def audit() -> None:
    """Check the log and the lease table."""


@audit.command()
@database_url_option
@json_option
def verify(database_url: str | None, *, as_json: bool) -> None:
    """Recompute the hash chain, and compare the table with the fold of the log."""
    settings = settings_of(database_url)
    quiet_logs(settings)
    verdict = run(_verify(settings))
    if as_json:
        print_json(verdict)
    else:
        problems = verdict.pop("problems")
        print_pairs(verdict)
        for problem in problems:
            click.echo(f"problem  {problem}")
    if not verdict["ok"]:
        raise SystemExit(Exit.FAILED)


@audit.command()
@database_url_option
@json_option
def rebuild(database_url: str | None, *, as_json: bool) -> None:
    """Put the lease table's rows right where they differ from the log; work columns stay."""
    settings = settings_of(database_url)
    quiet_logs(settings)
    changed = run(_rebuild(settings))
    if as_json:
        print_json({"rows_changed": changed})
    else:
        print_pairs({"rows_changed": changed})


async def _verify(settings: Settings) -> dict[str, Any]:
    from gateway.cli.opened import opened_service

    async with opened_service(settings) as service:
        verdict = await service.engine.auditor.verify()
    return {"ok": verdict.ok} | asdict(verdict)


async def _rebuild(settings: Settings) -> int:
    from gateway.cli.opened import opened_service

    async with opened_service(settings) as service:
        return await service.engine.auditor.rebuild()
