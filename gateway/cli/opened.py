"""What commands open: a database alone, or the whole machinery without anything running."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.service import Service, check_migrated, make_engine
from gateway.settings import Settings
from leases.database import Database


@asynccontextmanager
async def opened_database(settings: Settings) -> AsyncIterator[Database]:
    """The database, at the schema of this release. Errors: NotMigrated, DatabaseUnavailable."""
    database = Database(make_engine(settings.database_url, settings))
    try:
        await check_migrated(database)
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def opened_service(settings: Settings) -> AsyncIterator[Service]:
    """Every part of the service, with nothing that runs by itself."""
    async with Service(settings, watch=False) as service:
        yield service
