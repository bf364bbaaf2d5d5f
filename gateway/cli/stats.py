"""`mpack-gateway stats`: how the leases stand, in numbers and in one sentence."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from gateway.cli.exits import Exit, run
from gateway.cli.options import database_url_option, json_option, quiet_logs, settings_of
from gateway.cli.output import print_json, print_pairs

if TYPE_CHECKING:
    from gateway.settings import Settings
    from leases.stats import Stats
    from leases.usage import Usage

# Of a store that is out nobody waits to hear, who asks how the leases stand.
_STORE_SECONDS_MAX = 5.0


@click.command()
@database_url_option
@json_option
def stats(database_url: str | None, *, as_json: bool) -> None:
    """Print how many leases there are, what is overdue, and whether it is being done.

    The store is asked for its mark, because every replica pauses where that contradicts the log.
    Exit code 1 when leases are overdue and nobody deletes them.
    """
    settings = settings_of(database_url)
    quiet_logs(settings)
    found, quotas, mark_is_read = run(_stats(settings))
    if as_json:
        words = {"is_not_done": found.is_not_done, "words": found.in_words()}
        told = {"mark_is_read": mark_is_read, "quotas": [asdict(one) for one in quotas]}
        print_json(asdict(found) | words | told)
    else:
        print_pairs(_told(found, quotas, mark_is_read=mark_is_read))
    if found.is_not_done:
        raise SystemExit(Exit.FAILED)


def _told(found: Stats, quotas: list[Usage], *, mark_is_read: bool) -> dict[str, Any]:
    reaping = "not paused" if found.replicas else "no replica is running"
    if found.paused:
        reaping = f"paused by {found.paused_by}: {found.pause_reason}"
    elif found.mark_problem:
        reaping = f"paused: {found.mark_problem}"
    elif not mark_is_read:
        reaping += "; the store did not show its mark"
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


async def _stats(settings: Settings) -> tuple[Stats, list[Usage], bool]:
    import asyncio

    from gateway.cli.opened import opened_database
    from leases.stats import read_stats
    from leases.usage import read_usage

    upload_bytes_max = settings.wire.upload_bytes_max
    async with opened_database(settings) as database:
        usage = await read_usage(database, settings.lease, upload_bytes_max=upload_bytes_max)
        found = await read_stats(database)
    try:
        async with asyncio.timeout(_STORE_SECONDS_MAX):
            return replace(found, mark_problem=await _mark_problem(settings)), usage, True
    except Exception:  # noqa: BLE001  whatever a store raises, the leases stand as they stand
        return found, usage, False


async def _mark_problem(settings: Settings) -> str | None:
    from gateway.cli.opened import opened_service

    if settings.s3.s3_bucket is None and not settings.data_dir.exists():
        return None  # Opening the store would make the folder.
    async with opened_service(settings) as service:
        return await service.engine.owner.contradiction()
