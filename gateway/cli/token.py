"""`mpack-gateway token`: API tokens."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from gateway.cli.exits import Exit, run
from gateway.cli.moments import Moment
from gateway.cli.options import database_url_option, json_option, settings_of
from gateway.cli.output import print_json, print_rows

if TYPE_CHECKING:
    from gateway.settings import Settings

_SCOPES = ("read", "push", "admin")
_LISTS = ("scopes", "repos")
_COLUMNS = (
    *("token_id", "name", "scopes", "repos", "created_at", "expires_at", "last_used_at"),
    "revoked_at",
)


@click.group()
def token() -> None:
    """Make, list and revoke API tokens."""


@token.command()
@click.option("--name", required=True, help="Whose it is; shown in listings.")
@click.option(
    "--scope", "scopes", type=click.Choice(_SCOPES), multiple=True, required=True,
    help="What it is good for; push includes read, admin everything. May be repeated.",
)  # fmt: skip
@click.option(
    "--repo", "repos", multiple=True, metavar="OWNER/SLUG",
    help="Good for this repo alone. May be repeated.",
)  # fmt: skip
@click.option(
    "--expires", type=Moment(past=False), metavar="WHEN", help="After 30d, 12h, or at a moment."
)
@database_url_option
@json_option
def create(
    *,
    name: str,
    scopes: tuple[str, ...],
    repos: tuple[str, ...],
    expires: datetime | None,
    database_url: str | None,
    as_json: bool,
) -> None:
    """Make a token and print it, this once: it is kept nowhere."""
    settings = settings_of(database_url)
    secret, token_id = run(_create(settings, name, scopes, repos=repos, expires=expires))
    if as_json:
        print_json({"token_id": token_id, "secret": secret})
    else:
        click.echo(secret)
    click.echo(f"Token {token_id} is made; it is not shown again.", err=True)


async def _create(
    settings: Settings,
    name: str,
    scopes: tuple[str, ...],
    *,
    repos: tuple[str, ...],
    expires: datetime | None,
) -> tuple[str, str]:
    from gateway.auth import Scope, Tokens
    from gateway.cli.opened import opened_database

    async with opened_database(settings) as database:
        issued = await Tokens(database).create(
            name=name,
            scopes=[Scope(scope) for scope in scopes],
            repos=list(repos) or None,
            expires_at=expires,
        )
    return issued.secret, issued.token_id


@token.command("list")
@click.option("--all", "ended", is_flag=True, help="Also those that are revoked or expired.")
@database_url_option
@json_option
def list_(*, ended: bool, database_url: str | None, as_json: bool) -> None:
    """List the tokens, without their secrets: nobody has those."""
    found = run(_list(settings_of(database_url), ended=ended))
    if as_json:
        print_json({"tokens": found})
    else:
        shown = [row | {name: " ".join(row[name] or ()) for name in _LISTS} for row in found]
        print_rows(shown, _COLUMNS if ended else _COLUMNS[:-1])
    if not found:
        click.echo("No token matched.", err=True)
        raise SystemExit(Exit.NOTHING_MATCHED)


async def _list(settings: Settings, *, ended: bool) -> list[dict[str, Any]]:
    from gateway.auth import Tokens
    from gateway.cli.opened import opened_database

    async with opened_database(settings) as database:
        return await Tokens(database).all(ended=ended)


@token.command()
@click.argument("token_id")
@database_url_option
@json_option
def revoke(token_id: str, *, database_url: str | None, as_json: bool) -> None:
    """End a token now; the beginning of its id is enough if it is the only one."""
    revoked = run(_revoke(settings_of(database_url), token_id))
    if as_json:
        print_json({"token_id": revoked})
    else:
        click.echo(f"Token {revoked} is revoked.", err=True)


async def _revoke(settings: Settings, prefix: str) -> str:
    from gateway.auth import Tokens
    from gateway.cli.opened import opened_database

    async with opened_database(settings) as database:
        tokens = Tokens(database)
        token_id = await tokens.resolve(prefix)
        await tokens.revoke(token_id)
        return token_id
