"""`mpack-gateway lease`: leases, as the table and the log tell them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import click

from gateway.cli.exits import Exit, run
from gateway.cli.options import database_url_option, json_option, settings_of
from gateway.cli.output import print_json, print_pairs, print_rows
from gateway.settings import Settings

if TYPE_CHECKING:
    from gateway.lease_listing import Page, StateFilter

_COLUMNS = ("mpack_id", "state", "kind", "size_bytes", "granted_at", "delete_at", "outcome")
_EVENT_COLUMNS = ("version", "recorded_at", "type", "actor", "position")
_STATES = ("reserved", "active", "reclaimed", "stuck", "due")
_LIMIT_MAX = 1000


@click.group()
def lease() -> None:
    """Look at leases."""


@lease.command("list")
@click.option("--state", type=click.Choice(_STATES), help="Only these.")
@click.option("--repo", metavar="OWNER/SLUG", help="Only this repo's.")
@click.option("--prefix", default="", metavar="HEX", help="Only ids that begin with this.")
@click.option("--limit", type=click.IntRange(1, _LIMIT_MAX), default=100, show_default=True)
@click.option("--cursor", metavar="ID", help="Go on behind this id, as told by the last page.")
@database_url_option
@json_option
def list_(database_url: str | None, *, as_json: bool, **wanted: Any) -> None:
    """List leases, the newest first."""
    page = run(_page(settings_of(database_url), wanted))
    if as_json:
        print_json({"leases": page.rows, "next": page.next})
    else:
        print_rows(page.rows, _COLUMNS)
    if page.next is not None:
        click.echo(f"There are more: --cursor {page.next}", err=True)
    if not page.rows:
        click.echo("No lease matched.", err=True)
        raise SystemExit(Exit.NOTHING_MATCHED)


async def _page(settings: Settings, wanted: dict[str, Any]) -> Page:
    from gateway.cli.opened import opened_database
    from gateway.errors import RepoMissing
    from gateway.lease_listing import LeaseFilter, LeaseListing
    from gateway.packs.repos import find_repo
    from gateway.packs.transaction import reading

    async with opened_database(settings) as database:
        repo_id = None
        if wanted["repo"] is not None:
            owner, _, slug = wanted["repo"].partition("/")
            async with reading(database) as connection:
                repo = await find_repo(connection, owner=owner, slug=slug)
            if repo is None:
                raise RepoMissing(repo=wanted["repo"])
            repo_id = repo.repo_id
        chosen = LeaseFilter(
            repo_id=repo_id,
            state=cast("StateFilter | None", wanted["state"]),
            id_prefix=wanted["prefix"],
        )
        return await LeaseListing(database).leases(
            chosen, limit=wanted["limit"], cursor=wanted["cursor"]
        )


@lease.command()
@click.argument("mpack_id")
@database_url_option
@json_option
def show(mpack_id: str, database_url: str | None, *, as_json: bool) -> None:
    """Show one lease and its events; the beginning of its id is enough if it is the only one."""
    found = run(_show(settings_of(database_url), mpack_id))
    if as_json:
        print_json(found)
        return
    events = found.pop("events")
    print_pairs(found)
    click.echo()
    print_rows(events, _EVENT_COLUMNS)


async def _show(settings: Settings, prefix: str) -> dict[str, Any]:
    from gateway.cli.opened import opened_database
    from gateway.lease_listing import LeaseListing

    async with opened_database(settings) as database:
        listing = LeaseListing(database)
        return await listing.lease(await listing.resolve(prefix))
