"""`mpack-gateway token`: API tokens."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import click

from gateway.cli.exits import run
from gateway.cli.options import database_url_option, settings_of
from gateway.settings import Settings
from leases.clock import SystemClock

_SCOPES = ("read", "push", "admin")
_LIFE = re.compile(r"(\d{1,6})([mhdw])\Z", re.ASCII)
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Expiry(click.ParamType[datetime]):
    """A life such as 12h or 30d, or a moment with its zone."""

    name = "expiry"

    def convert(
        self, value: str | datetime, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        if isinstance(value, datetime):
            return value
        now = SystemClock().now()
        if found := _LIFE.match(value):
            moment = now + timedelta(**{_UNITS[found[2]]: int(found[1])})
        else:
            moment = self._moment(value, param, ctx)
        if moment <= now:
            self.fail("it lies in the past", param, ctx)
        return moment

    def _moment(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail("it is written 30d, 12h, or 2027-01-31T12:00:00Z", param, ctx)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


@click.group()
def token() -> None:
    """Make and revoke API tokens."""


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
@click.option("--expires", type=Expiry(), metavar="WHEN", help="After 30d, 12h, or at a moment.")
@database_url_option
def create(
    *,
    name: str,
    scopes: tuple[str, ...],
    repos: tuple[str, ...],
    expires: datetime | None,
    database_url: str | None,
) -> None:
    """Make a token and print it, this once: it is kept nowhere."""
    settings = settings_of(database_url)
    secret, token_id = run(_create(settings, name, scopes, repos=repos, expires=expires))
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


@token.command()
@click.argument("token_id")
@database_url_option
def revoke(token_id: str, database_url: str | None) -> None:
    """End a token now."""
    run(_revoke(settings_of(database_url), token_id))
    click.echo(f"Token {token_id} is revoked.", err=True)


async def _revoke(settings: Settings, token_id: str) -> None:
    from gateway.auth import Tokens
    from gateway.cli.opened import opened_database

    async with opened_database(settings) as database:
        await Tokens(database).revoke(token_id)
