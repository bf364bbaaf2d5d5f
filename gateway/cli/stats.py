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
    from leases.usage import Usage


@click.command()
@database_url_option
@json_option
def stats(database_url: str | None, *, as_json: bool) -> None:
    """Print how many leases there are, what is overdue, and whether it is being done.

    Exit code 1 when leases are overdue and nobody deletes them.
    """
    found, quotas = run(_stats(settings_of(database_url)))
    if as_json:
        words = {"is_not_done": found.is_not_done, "words": found.in_words()}
        print_json(asdict(found) | words | {"quotas": [asdict(one) for one in quotas]})
    else:
        print_pairs(_told(found, quotas))
    if found.is_not_done:
        raise SystemExit(Exit.FAILED)


def _told(found: Stats, quotas: list[Usage]) -> dict[str, Any]:
    reaping = "not paused by an operator" if found.replicas else "no replica is running"
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
        **{f"{one.quota}_max": one.in_words() for one in quotas},
        "": "",
        "in words": found.in_words(),
    }


async def _stats(settings: Settings) -> tuple[Stats, list[Usage]]:
    from gateway.cli.opened import opened_database
    from leases.stats import read_stats
    from leases.usage import read_usage

    upload_bytes_max = settings.wire.upload_bytes_max
    async with opened_database(settings) as database:
        usage = await read_usage(database, settings.lease, upload_bytes_max=upload_bytes_max)
        return await read_stats(database), usage
