"""`mpack-gateway stats`: how the leases stand, in numbers and in one sentence."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from gateway.cli.exits import Exit, run
from gateway.cli.options import database_url_option, json_option, settings_of
from gateway.cli.output import print_json, print_pairs

if TYPE_CHECKING:
    from gateway.settings import Settings
    from leases.stats import Stats


@click.command()
@database_url_option
@json_option
def stats(database_url: str | None, *, as_json: bool) -> None:
    """Print how many leases there are, what is overdue, and whether it is being done.

    Exit code 1 when leases are overdue and nobody deletes them.
    """
    found = run(_stats(settings_of(database_url)))
    if as_json:
        print_json(asdict(found) | {"is_not_done": found.is_not_done, "words": found.in_words()})
    else:
        print_pairs(_told(found))
    if found.is_not_done:
        raise SystemExit(Exit.FAILED)


def _told(found: Stats) -> dict[str, Any]:
    reaping = "running" if found.replicas else "no replica is running"
    if found.paused:
        reaping = f"paused by {found.paused_by}: {found.pause_reason}"
    return {
        **found.by_state,
        "bytes_held": f"{found.bytes_held:,}",
        "overdue": f"{found.overdue:,}",
        "oldest_overdue_seconds": f"{found.oldest_overdue_seconds:,.1f}",
        "put_off": f"{found.put_off:,}",
        "claimed": found.claimed,
        "stuck": found.stuck,
        "events": f"{found.head_position:,}",
        "log_id": found.log_id,
        "replicas": found.replicas,
        "reaping": reaping,
        "": "",
        "in words": found.in_words(),
    }


async def _stats(settings: Settings) -> Stats:
    from gateway.cli.opened import opened_database
    from leases.stats import read_stats

    async with opened_database(settings) as database:
        return await read_stats(database)
