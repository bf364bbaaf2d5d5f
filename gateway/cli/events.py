"""`mpack-gateway events`: the log, as it grows and as a whole."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Mapping
from typing import IO, TYPE_CHECKING, Any

import click

from gateway.cli.archive import archive
from gateway.cli.exits import Exit, run
from gateway.cli.moments import Moment
from gateway.cli.options import database_url_option, quiet_logs, settings_of
from gateway.cli.output import line_of, shown, told_of
from gateway.cli.progress import progress

if TYPE_CHECKING:
    from datetime import datetime

    from gateway.service import Service
    from gateway.settings import Settings
    from leases.database import Database

_PAGE = 1000
# A notification wakes the reader; this is for those that get lost.
_POLL_SECONDS = 1.0


@click.group()
def events() -> None:
    """Follow, export and archive the log."""


@events.command()
@click.option("--last", type=click.IntRange(0, _PAGE), default=10, show_default=True,
              help="Begin with so many that stand there already.")  # fmt: skip
@click.option("--after", type=click.IntRange(min=0), metavar="POSITION",
              help="Begin behind this position instead.")  # fmt: skip
@click.option("--stream", help="Only this stream, such as lease/ID.")
@click.option("--type", "type_", metavar="TYPE", help="Only this type, such as lease.reclaimed.")
@database_url_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document a line.")
def tail(database_url: str | None, *, as_json: bool, **wanted: Any) -> None:
    """Print the newest events, and every further one as it is appended, until Ctrl-C."""
    settings = settings_of(database_url)
    quiet_logs(settings)
    run(_tail(settings, wanted, as_json=as_json))


async def _tail(settings: Settings, wanted: Mapping[str, Any], *, as_json: bool) -> None:
    import asyncio

    from gateway.cli.interrupt import stoppable
    from gateway.cli.opened import opened_service

    async with opened_service(settings) as service:
        with stoppable(quietly=True) as stop:
            reading = asyncio.ensure_future(_follow(service, wanted, as_json=as_json))
            stopped = asyncio.ensure_future(stop.wait())
            await asyncio.wait((reading, stopped), return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            reading.cancel()
            try:
                await reading
            except asyncio.CancelledError:
                return


async def _follow(service: Service, wanted: Mapping[str, Any], *, as_json: bool) -> None:
    import asyncio

    from gateway.waiting import came

    more = asyncio.Event()
    await service.engine.instance.listen("mpack_events", lambda _payload: more.set())
    after = await _beginning(service, wanted)
    while True:
        more.clear()
        page = await service.listing.events(
            after=after, stream=wanted["stream"], type=wanted["type_"], limit=_PAGE
        )
        for event in page.rows:
            click.echo(line_of(event) if as_json else _as_line(event))
            after = event["position"]
        if page.next is None:
            await came(more, seconds_max=_POLL_SECONDS)


_BEGINNING = """
SELECT min(position) - 1 AS after FROM (
    SELECT position FROM events
    WHERE ($1::text IS NULL OR stream = $1) AND ($2::text IS NULL OR type = $2)
    ORDER BY position DESC LIMIT $3) AS newest
"""


async def _beginning(service: Service, wanted: Mapping[str, Any]) -> int:
    if wanted["after"] is not None:
        return int(wanted["after"])
    head = await service.engine.log.head()
    row = await service.database.row(_BEGINNING, wanted["stream"], wanted["type_"], wanted["last"])
    return head["position"] if row["after"] is None else int(row["after"])


def _as_line(event: Mapping[str, Any]) -> str:
    words = (
        f"{event['position']:>8}  {shown(event['recorded_at'])}  {event['type']:<21}",
        f"{event['stream']}  {event['actor']}",
        told_of(event["data"]),
    )
    return "  ".join(words).rstrip()


events.add_command(archive)


@events.command()
@click.option("--after", type=click.IntRange(min=0), default=0, metavar="POSITION",
              help="Only events behind this position.")  # fmt: skip
@click.option("--since", type=Moment(past=True), metavar="WHEN",
              help="Only events recorded then or later, such as 12h.")  # fmt: skip
@click.option("--until", type=Moment(past=True), metavar="WHEN",
              help="Only events recorded before then.")  # fmt: skip
@click.option("--output", type=click.File("w", lazy=False), metavar="FILE",
              help="Write here instead of to stdout.")  # fmt: skip
@database_url_option
@click.option("--json", is_flag=True, expose_value=False, help="It is always JSON.")
def export(database_url: str | None, *, output: IO[str] | None, **wanted: Any) -> None:
    """Write the log, one JSON document a line, in order.

    The lines prove themselves: `data`, dumped with sorted keys and without spaces, is the text
    that was hashed, and leases/chain.py says how every hash follows from the one before.
    Ctrl-C ends it behind a whole line; --after goes on from there.
    """
    settings = settings_of(database_url)
    quiet_logs(settings)
    raise SystemExit(run(_export(settings, wanted, output or sys.stdout)))


async def _export(settings: Settings, wanted: Mapping[str, Any], output: IO[str]) -> Exit:
    from gateway.cli.interrupt import stoppable
    from gateway.cli.opened import opened_database

    written = last = 0
    with stoppable() as stop:
        async with opened_database(settings) as database:
            first, end = await _range(database, wanted)
            with progress("exported", max(0, end - first)) as tell:
                async for rows in _pages(database, first, end):
                    output.writelines(line_of(row) + "\n" for row in rows)
                    written, last = written + len(rows), rows[-1]["position"]
                    tell(written)
                    if stop.is_set():
                        break
    output.flush()
    if stop.is_set() and last < end:
        click.echo(f"There are more: --after {last}", err=True)
        return Exit.PARTIAL
    return Exit.OK if written else Exit.NOTHING_MATCHED


async def _range(database: Database, wanted: Mapping[str, Any]) -> tuple[int, int]:
    """Behind which position to begin, and the last one to write."""
    from leases.report import position_at

    async def behind(moment: datetime) -> int:
        return await position_at(database, moment)

    first = int(wanted["after"])
    if wanted["since"] is not None:
        first = max(first, await behind(wanted["since"]))
    row = await database.row("SELECT position FROM event_head")
    end = int(row["position"])
    if wanted["until"] is not None:
        end = min(end, await behind(wanted["until"]))
    return first, end


async def _pages(database: Database, first: int, end: int) -> AsyncIterator[list[dict[str, Any]]]:
    from gateway.lease_listing import LeaseListing
    from leases.codec import instant

    listing, after = LeaseListing(database), first
    while after < end:
        page = await listing.events(after=after, limit=min(_PAGE, end - after))
        if not page.rows:
            return
        # To the microsecond, as it was hashed.
        yield [row | {"recorded_at": instant(row["recorded_at"])} for row in page.rows]
        after = page.rows[-1]["position"]
