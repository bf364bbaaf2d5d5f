"""`mpack-gateway repo`: repositories."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
from gateway.cli.output import print_json, print_rows

if TYPE_CHECKING:
    from gateway.packs.repos import Repo, Visibility
    from gateway.settings import Settings
    from leases.database import Database

_COLUMNS = ("repo_id", "name", "visibility", "created_at", "pushed_at", "deleted_at")


@click.group()
def repo() -> None:
    """Make, list and delete repositories."""


@repo.command()
@click.argument("name", metavar="OWNER/SLUG")
@click.option("--private", is_flag=True, help="Only tokens may read it.")
@database_url_option
@json_option
def create(name: str, *, private: bool, database_url: str | None, as_json: bool) -> None:
    """Make a repository and print its id; one that is there already stays as it is."""
    owner, slug = _parts(name)
    settings = settings_of(database_url)
    quiet_logs(settings)
    visibility: Visibility = "private" if private else "public"
    repo_id, found = run(_create(settings, owner, slug, visibility=visibility))
    if as_json:
        print_json({"repo_id": repo_id, "name": name, "visibility": found})
    else:
        click.echo(repo_id)
    if found != visibility:
        click.echo(f"{name} was there already, and it is {found}.", err=True)


@repo.command("list")
@click.option("--owner", help="Only this owner's.")
@click.option("--deleted", is_flag=True, help="Also those that wait for `gc`.")
@database_url_option
@json_option
def list_(*, owner: str | None, deleted: bool, database_url: str | None, as_json: bool) -> None:
    """List repositories by name."""
    found = run(_list(settings_of(database_url), owner, deleted=deleted))
    if as_json:
        print_json({"repos": found})
    else:
        print_rows(found, _COLUMNS if deleted else _COLUMNS[:-1])
    if not found:
        click.echo("No repository matched.", err=True)
        raise SystemExit(Exit.NOTHING_MATCHED)


@repo.command()
@click.argument("name", metavar="OWNER/SLUG")
@yes_option
@database_url_option
@json_option
def delete(name: str, *, yes: bool, database_url: str | None, as_json: bool) -> None:
    """Delete a repository: nobody finds it any more, at once.

    What it alone held is removed by the next `gc`; until then its name stays taken. Packs whose
    URLs were handed out live until their deadline.
    """
    owner, slug = _parts(name)
    settings = settings_of(database_url)
    quiet_logs(settings)
    confirmed(f"Delete {name}? There is no way back.", yes=yes)
    repo_id = run(_delete(settings, owner, slug))
    if as_json:
        print_json({"repo_id": repo_id, "name": name})
    else:
        click.echo(f"{name} ({repo_id}) is deleted; `mpack-gateway gc` makes room.", err=True)


def _parts(name: str) -> tuple[str, str]:
    owner, slash, slug = name.partition("/")
    if not slash:
        raise click.BadParameter("a repository is written owner/slug", param_hint="OWNER/SLUG")
    return owner, slug


async def repo_named(database: Database, name: str) -> Repo:
    """The repository that is called so. Errors: RepoMissing."""
    from gateway.errors import RepoMissing
    from gateway.packs.repos import find_repo

    owner, _, slug = name.partition("/")
    found = await find_repo(database, owner=owner, slug=slug)
    if found is None:
        raise RepoMissing(repo=name)
    return found


async def _create(
    settings: Settings, owner: str, slug: str, *, visibility: Visibility
) -> tuple[str, str]:
    from gateway.cli.caller import caller
    from gateway.cli.opened import opened_service

    async with opened_service(settings) as service:
        made = await service.repos.ensure(
            owner=owner, slug=slug, visibility=visibility, caller=caller()
        )
    return made.repo_id, made.visibility


async def _list(settings: Settings, owner: str | None, *, deleted: bool) -> list[dict[str, Any]]:
    from gateway.cli.opened import opened_database
    from gateway.packs.repos import list_repos

    async with opened_database(settings) as database:
        return await list_repos(database, owner=owner, deleted=deleted)


async def _delete(settings: Settings, owner: str, slug: str) -> str:
    from gateway.cli.caller import caller
    from gateway.cli.opened import opened_service

    async with opened_service(settings) as service:
        gone = await service.repos.delete(owner=owner, slug=slug, caller=caller())
    return gone.repo_id
