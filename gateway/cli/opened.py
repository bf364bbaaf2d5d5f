"""What commands open: a database alone, or the whole machinery without anything running."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.service import Service, check_migrated, make_engine
from gateway.settings import Settings
from leases.database import Database
from leases.errors import StoreUnavailable


@asynccontextmanager
async def opened_database(settings: Settings) -> AsyncIterator[Database]:
    """The database, at the schema of this release. Errors: NotMigrated, DatabaseUnavailable."""
    database = Database(make_engine(settings.database_url, settings))
    try:
        await check_migrated(database)
        yield database
    finally:
        await database.close()


def check_store_folder(settings: Settings) -> None:
    """For commands that delete: a folder that they would have to make is not the gateway's.

    Where nothing is, everything looks deleted, and would be recorded so. The default is relative:
    whoever gives the command somewhere else has no store there.
    Errors: StoreUnavailable.
    """
    if settings.s3.s3_bucket is None and not settings.data_dir.exists():
        raise StoreUnavailable(
            f"There is no folder of blobs at {settings.data_dir.absolute()};"
            " MPACK_DATA_DIR says where it is."
        )


@asynccontextmanager
async def opened_service(settings: Settings) -> AsyncIterator[Service]:
    """Every part of the service, with nothing that runs by itself."""
    async with Service(settings, watch=False) as service:
        yield service
