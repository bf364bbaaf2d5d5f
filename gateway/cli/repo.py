"""`mpack-gateway repo`: repositories."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from gateway.cli.exits import run
from gateway.cli.options import database_url_option, quiet_logs, settings_of
from gateway.settings import Settings

if TYPE_CHECKING:
    from gateway.packs.repos import Visibility


@click.group()
def repo() -> None:
    """Make repositories."""


@repo.command()
@click.argument("name", metavar="OWNER/SLUG")
@click.option("--private", is_flag=True, help="Only tokens may read it.")
@database_url_option
def create(name: str, database_url: str | None, *, private: bool) -> None:
    """Make a repository and print its id; one that is there already stays as it is."""
    owner, slash, slug = name.partition("/")
    if not slash:
        raise click.BadParameter("a repository is written owner/slug", param_hint="OWNER/SLUG")
    settings = settings_of(database_url)
    quiet_logs(settings)
    visibility: Visibility = "private" if private else "public"
    repo_id, found = run(_create(settings, owner, slug, visibility=visibility))
    click.echo(repo_id)
    if found != visibility:
        click.echo(f"{name} was there already, and it is {found}.", err=True)


async def _create(
    settings: Settings, owner: str, slug: str, *, visibility: Visibility
) -> tuple[str, str]:
    from gateway.cli.opened import opened_service
    from leases.lessor import Caller

    async with opened_service(settings) as service:
        made = await service.repos.ensure(
            owner=owner, slug=slug, visibility=visibility, caller=Caller(actor="command")
        )
    return made.repo_id, made.visibility
