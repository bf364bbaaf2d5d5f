"""`mpack-gateway audit`: the log must hold together, the lease table follow from it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from gateway.cli.exits import Exit, run
from gateway.cli.moments import Moment
from gateway.cli.options import database_url_option, json_option, quiet_logs, settings_of
from gateway.cli.output import print_json, print_pairs, print_rows
from gateway.cli.progress import progress

if TYPE_CHECKING:
    from datetime import datetime

    from gateway.settings import Settings
    from leases.report import Report


@click.group()
def audit() -> None:
    """Check the log and the lease table, and report."""


class _Head(click.ParamType[tuple[int, str]]):
    """POSITION:HASH, as `audit verify` and the log line `log_head_published` tell it."""

    name = "head"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, str]:
        match = re.fullmatch(r"([0-9]{1,18}):([0-9a-f]{64})", value, re.ASCII)
        if match is None:
            self.fail("a position, a colon and 64 hex digits", param, ctx)
        return int(match[1]), match[2]


@audit.command()
@click.option("--newest", type=click.IntRange(min=1), metavar="NUMBER",
              help="Only the chain of so many events at the log's end; not the table.")  # fmt: skip
@click.option("--head", "heads", type=_Head(), multiple=True, metavar="POSITION:HASH",
              help="An event that was published; may be given again.")  # fmt: skip
@click.option("--no-store", is_flag=True, help="Ask the store for nothing.")
@database_url_option
@json_option
def verify(
    *,
    newest: int | None,
    heads: tuple[tuple[int, str], ...],
    no_store: bool,
    database_url: str | None,
    as_json: bool,
) -> None:
    """Recompute the hash chain, compare the table with the fold of the log and with the store.

    The log must have the event that was published in the store, and those that --head names.
    """
    from leases.audit import REMEDY

    settings = settings_of(database_url)
    quiet_logs(settings)
    verdict = run(_verify(settings, heads, newest=newest, with_store=not no_store))
    if as_json:
        print_json(verdict)
    else:
        problems, notes = verdict.pop("problems"), verdict.pop("notes")
        print_pairs(verdict)
        for name, lines in (("problem", problems), ("note", notes)):
            for line in lines:
                click.echo(f"{name:<8} {line}")
    if not verdict["ok"]:
        click.echo(REMEDY, err=True)
        raise SystemExit(Exit.FAILED)


@audit.command()
@database_url_option
@json_option
def rebuild(database_url: str | None, *, as_json: bool) -> None:
    """Put the lease table's rows right where they differ from the log; work columns stay."""
    settings = settings_of(database_url)
    quiet_logs(settings)
    told = {"rows_changed": run(_rebuild(settings))}
    if as_json:
        print_json(told)
    else:
        print_pairs(told)


@audit.command()
@click.option("--since", type=Moment(past=True), metavar="WHEN",
              help="From then on, such as 24h; by default from the beginning.")  # fmt: skip
@click.option("--until", type=Moment(past=True), metavar="WHEN", help="Up to then; or to now.")
@database_url_option
@json_option
def report(
    *, since: datetime | None, until: datetime | None, database_url: str | None, as_json: bool
) -> None:
    """Tell from the log how the promise was kept, and what was out of the ordinary.

    Exit code 1 when a pack was deleted before its deadline, or twice.
    """
    settings = settings_of(database_url)
    quiet_logs(settings)
    found = run(_report(settings, since, until))
    if as_json:
        print_json(asdict(found) | {"ok": found.ok, "words": found.in_words()})
    else:
        _print_report(found)
    if not found.ok:
        raise SystemExit(Exit.FAILED)
    if not found.by_type:
        raise SystemExit(Exit.NOTHING_MATCHED)


def _print_report(found: Report) -> None:
    print_pairs(
        {
            "since": found.since,
            "until": found.until,
            "positions": f"{found.first_position} to {found.last_position}",
            **found.by_type,
            **{name: n for name, n in found.reclaimed.items() if name.startswith("lateness")},
        }
    )
    if found.by_outcome:
        click.echo()
        print_rows(found.by_outcome, ("outcome", "trigger", "leases"))
    if found.out_of_the_ordinary:
        click.echo()
        columns = ("position", "recorded_at", "type", "stream", "actor", "reason")
        print_rows(found.out_of_the_ordinary, columns)
    click.echo()
    click.echo(found.in_words())


async def _verify(
    settings: Settings,
    heads: Sequence[tuple[int, str]],
    *,
    newest: int | None,
    with_store: bool,
) -> dict[str, Any]:
    from gateway.cli.opened import opened_service
    from leases.audit import Published, Verdict
    from leases.outside import check_store, published_in_store

    async with opened_service(settings) as service:
        engine, store = service.engine, Verdict()
        # The mark first: a head that was read before it would look like a log cut short.
        mark = await engine.owner.mark() if with_store else None
        published = [Published(*head) for head in heads]
        published += published_in_store(mark, log_id=engine.log_id, verdict=store)
        if newest is None:
            total = (await engine.log.head())["position"]
            with progress("verified", total) as tell:
                verdict = await engine.auditor.verify(tell=tell, published=published)
            if with_store and store.ok:
                await check_store(engine.reconciler, store)
        else:
            verdict = await engine.auditor.verify_tail(newest, published=published)
    verdict.problems += store.problems
    verdict.notes += store.notes
    return {"ok": verdict.ok} | asdict(verdict)


async def _rebuild(settings: Settings) -> int:
    from gateway.cli.opened import opened_service

    async with opened_service(settings) as service:
        return await service.engine.auditor.rebuild()


async def _report(settings: Settings, since: datetime | None, until: datetime | None) -> Report:
    from gateway.cli.opened import opened_database
    from leases.report import make_report

    async with opened_database(settings) as database:
        return await make_report(database, since=since, until=until)
