"""`mpack-gateway events archive`: the oldest parts of the log, out of the database into files."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gateway.cli.exits import Exit, run
from gateway.cli.moments import Moment
from gateway.cli.options import database_url_option, json_option, quiet_logs, settings_of
from gateway.cli.output import print_json, print_rows
from gateway.cli.progress import progress

if TYPE_CHECKING:
    from datetime import datetime

    from gateway.settings import Settings
    from leases.archive_files import Part

_COLUMNS = ("first_position", "last_position", "ended_at", "leases", "head")


@click.command()
@click.option("--before", type=Moment(past=True), required=True, metavar="WHEN",
              help="Only parts that ended before then, such as 30d.")  # fmt: skip
@click.option("--to", "folder", type=click.Path(file_okay=False, path_type=Path), required=True,
              metavar="FOLDER", help="Write the files here.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Only say which parts would go.")
@click.option("--drop", is_flag=True,
              help="Drop the detached tables, too: only the files are left.")  # fmt: skip
@database_url_option
@json_option
def archive(
    *,
    before: datetime,
    folder: Path,
    dry_run: bool,
    drop: bool,
    database_url: str | None,
    as_json: bool,
) -> None:
    """Export the oldest parts of the log with the leases that ended in them, and detach them.

    A part leaves the database when its files are on disk and have proven themselves. The log says
    what was taken out, and its chain goes on. Needs the owner's rights. Ctrl-C ends it behind a
    part; killed anywhere, the same command goes on.

    Exit codes: 3 nothing may go yet, 4 stopped.
    """
    settings = settings_of(database_url)
    quiet_logs(settings)
    try:
        parts, why, code = run(_archive(settings, before, folder, dry_run=dry_run, drop=drop))
    except OSError as error:
        raise click.ClickException(f"{folder}: {error.strerror}; nothing was detached") from error
    if as_json:
        print_json({"parts": parts, "then": why, "dry_run": dry_run})
    elif parts:
        print_rows(parts, _COLUMNS)
    if why:
        click.echo(f"No more may go: {why}.", err=True)
    raise SystemExit(code)


async def _archive(
    settings: Settings, before: datetime, folder: Path, *, dry_run: bool, drop: bool
) -> tuple[list[dict[str, Any]], str, Exit]:
    from gateway.cli.caller import caller
    from gateway.cli.interrupt import stoppable
    from gateway.cli.opened import opened_service
    from gateway.service import steps_of
    from leases.archive import Archiver
    from leases.archive_files import held

    gone: list[dict[str, Any]] = []
    with stoppable() as stop:
        async with opened_service(settings) as service:
            steps = steps_of(settings.crash_at)
            archiver = Archiver(service.database, service.engine.log, steps=steps)
            parts, why = await archiver.parts(before)
            exported, total = 0, sum(one.last_position - one.first_position + 1 for one in parts)
            ours = held(folder) if parts and not dry_run else nullcontext()
            with ours, progress("exported", total) as tell:

                def count(events: int) -> None:
                    nonlocal exported
                    exported += events
                    tell(exported)

                for part in parts:
                    told = _told(part)
                    if not dry_run:
                        manifest = await archiver.write(part, folder, tell=count)
                        told["leases"] = await archiver.detach(
                            part, manifest, caller=caller(), drop=drop
                        )
                    gone.append(told)
                    if stop.is_set():
                        break
    if not gone:
        return gone, why, Exit.NOTHING_MATCHED
    return gone, why, Exit.PARTIAL if len(gone) < len(parts) else Exit.OK


def _told(part: Part) -> dict[str, Any]:
    return {
        "first_position": part.first_position,
        "last_position": part.last_position,
        "ended_at": part.ended_at,
        "leases": None,
        "head": f"{part.last_position}:{part.hash}",
    }
