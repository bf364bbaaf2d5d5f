"""`mpack-gateway sweep`: reap what is due, by the same function as the service's own workers."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from gateway.cli.exits import Exit, run
from gateway.cli.options import database_url_option, json_option, quiet_logs, settings_of
from gateway.cli.output import print_json, print_pairs
from gateway.settings import Settings

if TYPE_CHECKING:
    from leases.reaper import SweepResult


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what is due.")
@click.option("--limit", type=click.IntRange(min=1), help="Reap at most so many leases.")
@database_url_option
@json_option
def sweep(*, dry_run: bool, limit: int | None, database_url: str | None, as_json: bool) -> None:
    """Delete the blobs of all leases that are due, and record it.

    Nothing is deleted while reaping is paused: when the store belongs to another log.
    Exit codes: 3 nothing was due, 4 some deletions failed, 75 paused or unreachable.
    """
    settings = settings_of(database_url)
    quiet_logs(settings)
    result = run(_sweep(settings, limit=limit, dry_run=dry_run))
    told = asdict(result) | {"dry_run": dry_run}
    if as_json:
        print_json(told)
    else:
        told["mpack_ids"] = " ".join(told["mpack_ids"]) or None
        print_pairs(told)
    raise SystemExit(_exit_code(result, dry_run=dry_run))


def _exit_code(result: SweepResult, *, dry_run: bool) -> Exit:
    if result.failed or result.handed_back:
        return Exit.PARTIAL if result.reclaimed else Exit.TRY_LATER
    found = len(result.mpack_ids) if dry_run else result.claimed
    return Exit.OK if found else Exit.NOTHING_MATCHED


async def _sweep(settings: Settings, *, limit: int | None, dry_run: bool) -> SweepResult:
    from gateway.cli.opened import opened_service
    from leases.errors import Unavailable
    from leases.model import Trigger

    async with opened_service(settings) as service:
        if not dry_run:
            await service.engine.owner.check()
            if not service.engine.owner.may_reap():
                raise Unavailable(f"Reaping is paused: {service.engine.owner.reason}.")
        return await service.engine.reaper.sweep(Trigger.COMMAND, limit=limit, dry_run=dry_run)
