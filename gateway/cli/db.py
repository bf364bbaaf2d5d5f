"""`mpack-gateway db`: the database's schema."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import click

from gateway.cli.exits import Exit, run
from gateway.cli.options import database_url_option, json_option, settings_of
from gateway.cli.output import print_json

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from gateway.settings import Settings

T = TypeVar("T")


@click.group()
def db() -> None:
    """Migrate and check the database."""


@db.command()
@database_url_option
@json_option
def upgrade(database_url: str | None, *, as_json: bool) -> None:
    """Bring the database to the schema of this release; doing it again changes nothing."""
    revision = run(_upgrade(settings_of(database_url)))
    if as_json:
        print_json({"revision": revision})
    else:
        click.echo(f"The database is at revision {revision}.", err=True)


@db.command()
@database_url_option
@json_option
def current(database_url: str | None, *, as_json: bool) -> None:
    """Print the schema's revision; exit code 75 when it is not this release's."""
    from schema import revision

    found = run(_current(settings_of(database_url)))
    if as_json:
        print_json({"revision": found, "expected": revision.HEAD})
    else:
        click.echo(found or "nothing")
    if found != revision.HEAD:
        click.echo(f"This release expects {revision.HEAD}: mpack-gateway db upgrade.", err=True)
        raise SystemExit(Exit.TRY_LATER)


@db.command()
@database_url_option
@json_option
def check(database_url: str | None, *, as_json: bool) -> None:
    """Compare the tables with what this release makes of them; exit code 1 where they differ."""
    problem = run(_check(settings_of(database_url)))
    if as_json:
        print_json({"ok": problem is None, "problem": problem})
    else:
        click.echo(problem or "The tables are as this release makes them.", err=True)
    if problem is not None:
        raise SystemExit(Exit.FAILED)


@db.command()
@click.option("--from", "start", metavar="REVISION", help="Begin behind this one: `db current`.")
@json_option
def sql(*, start: str | None, as_json: bool) -> None:
    """Print the migrations as SQL, for a database that somebody else migrates.

    Needs no database. Run it as the owner of the tables, in one go, in the schema public.
    """
    from schema import migrate, revision

    try:
        statements = migrate.statements(start)
    except LookupError as error:
        raise click.BadParameter(str(error), param_hint="--from") from None
    if as_json:
        print_json({"revision": revision.HEAD, "sql": statements})
    else:
        click.echo(statements)


async def _upgrade(settings: Settings) -> str:
    from schema import migrate, revision

    await _with_engine(settings, migrate.upgrade)
    return revision.HEAD


async def _current(settings: Settings) -> str | None:
    from schema import revision

    return await _with_engine(settings, revision.current)


async def _check(settings: Settings) -> str | None:
    from alembic.util import CommandError

    from schema import migrate

    try:
        await _with_engine(settings, migrate.check)
    except CommandError as error:
        return str(error)
    return None


async def _with_engine(settings: Settings, work: Callable[[AsyncEngine], Awaitable[T]]) -> T:
    """Session locks do not pass a transaction pooler; the direct address does, if there is one."""
    from sqlalchemy.ext.asyncio import create_async_engine

    from gateway.settings import database_dsn
    from leases.database import translated

    url = settings.database_direct_url or settings.database_url
    engine = create_async_engine(database_dsn(url))
    try:
        with translated():
            return await work(engine)
    finally:
        await engine.dispose()
