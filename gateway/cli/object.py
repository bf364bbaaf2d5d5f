"""`mpack-gateway object`: single objects."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from gateway.cli.exits import Exit, run
from gateway.cli.options import (
    confirmed,
    database_url_option,
    json_option,
    quiet_logs,
    settings_of,
    yes_option,
)
from gateway.cli.output import print_json, print_pairs

if TYPE_CHECKING:
    from gateway.packs.purge import Purged
    from gateway.settings import Settings


@click.group("object")
def object_() -> None:
    """Take one object's bytes out of the store."""


@object_.command()
@click.argument("object_id")
@click.option("--reason", required=True, help="Why; it is kept in the log.")
@click.option("--dry-run", is_flag=True, help="Only say who holds it and what would be rewritten.")
@yes_option
@database_url_option
@json_option
def purge(
    object_id: str,
    *,
    reason: str,
    dry_run: bool,
    yes: bool,
    database_url: str | None,
    as_json: bool,
) -> None:
    """Remove one object everywhere: a secret that was pushed, for example.

    Segments that hold it are rewritten without it, and open leases of the repositories that hold
    it are revoked. Push the history without it first: a fetch that still needs it is refused.

    Exit code 4: the store did not delete all of it; the same command again goes on from there.
    """
    settings = settings_of(database_url)
    quiet_logs(settings)
    if not dry_run:
        confirmed(f"Remove the bytes of {object_id} for good?", yes=yes)
    done = run(_purge(settings, object_id, reason=reason, dry_run=dry_run))
    told = asdict(done) | {"dry_run": dry_run}
    if as_json:
        print_json(told)
    else:
        print_pairs(told | {"repos": " ".join(done.repos) or None})
    if done.blobs_failed:
        raise SystemExit(Exit.PARTIAL)


async def _purge(settings: Settings, object_id: str, *, reason: str, dry_run: bool) -> Purged:
    from gateway.cli.caller import caller
    from gateway.cli.opened import check_store_folder, opened_service
    from gateway.packs.purge import Purge
    from leases.revocation import Revocation

    check_store_folder(settings)
    async with opened_service(settings) as service:
        database, log = service.database, service.engine.log
        revocation = Revocation(database, log, replica=service.engine.instance.instance_id)
        purging = Purge(database, log, service.store, revocation=revocation)
        wanted = object_id.removeprefix("sha256:")
        if dry_run:
            return await purging.plan(wanted)
        return await purging.purge(wanted, reason=reason, caller=caller())
