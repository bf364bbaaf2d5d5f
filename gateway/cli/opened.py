"""What commands open: a database alone, or the whole machinery without anything running."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.service import NotMigrated, Service, make_engine, revision_of
from gateway.settings import Settings
from leases.database import Database
from schema import migrate


@asynccontextmanager
async def opened_database(settings: Settings) -> AsyncIterator[Database]:
    """The database, at the schema of this release. Errors: NotMigrated, DatabaseUnavailable."""
    database = Database(make_engine(settings.database_url, settings))
    try:
        found = await revision_of(database)
        if found != migrate.head():
            raise NotMigrated(found=found or "nothing", expected=migrate.head())
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def opened_service(settings: Settings) -> AsyncIterator[Service]:
    """Every part of the service, with nothing that runs by itself."""
    async with Service(settings, watch=False) as service:
        yield service
