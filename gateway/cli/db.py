"""`mpack-gateway db`: the database's schema."""

from __future__ import annotations

import click

from gateway.cli.exits import run
from gateway.cli.options import database_url_option, settings_of
from gateway.settings import Settings


@click.group()
def db() -> None:
    """Migrate the database."""


@db.command()
@database_url_option
def upgrade(database_url: str | None) -> None:
    """Bring the database to the schema of this release; doing it again changes nothing."""
    revision = run(_upgrade(settings_of(database_url)))
    click.echo(f"The database is at revision {revision}.", err=True)


async def _upgrade(settings: Settings) -> str:
    from sqlalchemy.ext.asyncio import create_async_engine

    from gateway.settings import database_dsn
    from leases.database import translate
    from schema import migrate

    # Session locks do not pass a transaction pooler; the direct address does, where there is one.
    url = settings.database_direct_url or settings.database_url
    engine = create_async_engine(database_dsn(url))
    try:
        await migrate.upgrade(engine)
    except Exception as error:
        if (failure := translate(error)) is not None:
            raise failure from error
        raise
    finally:
        await engine.dispose()
    return migrate.head()
