"""Commands as a person gives them, against one database and one store."""

from __future__ import annotations

import json
import os
from pathlib import Path

import asyncpg
from click.testing import CliRunner, Result

from gateway.cli import main
from gateway.service import Service
from leases.ids import new_mpack_id
from leases.lessor import Caller
from leases.model import LeaseKind
from tests.databases import driver_url, run_apart
from tests.integration.gateways import settings_for
from tests.stores import variables_of, view_of

CALLER = Caller(actor="test")


class Commands:
    """Runs verbs against one database and one store."""

    def __init__(self, database_url: str, data_dir: Path) -> None:
        self.database_url, self.data_dir = database_url, data_dir
        self.view = view_of(data_dir)
        told = {"database_url": database_url, "log_format": "json", **variables_of(data_dir)}
        self.environ = {f"MPACK_{name.upper()}": str(value) for name, value in told.items()}

    @property
    def whole_environ(self) -> dict[str, str]:
        """For a process of its own."""
        return dict(os.environ) | self.environ

    def run(self, *args: str, exits: int = 0, **environ: str) -> Result:
        result = CliRunner().invoke(main, args, env=self.environ | environ)
        assert result.exit_code == exits, (result.output, result.exception)
        return result

    def run_any(self, *args: str) -> Result:
        """However it ends."""
        return CliRunner().invoke(main, args, env=self.environ)

    def json(self, *args: str, exits: int = 0) -> dict[str, object]:
        value = json.loads(self.run(*args, "--json", exits=exits).stdout)
        assert isinstance(value, dict)
        return value

    def grant(self, *, ended: bool = False) -> str:
        """A lease with its blob, made by a service that has gone since; perhaps due already."""

        async def work() -> str:
            settings = settings_for(self.database_url, self.data_dir)
            async with Service(settings, watch=False) as service:
                lessor, mpack_id = service.engine.lessor, new_mpack_id()
                lease = await lessor.reserve(
                    mpack_id=mpack_id, kind=LeaseKind.PACK, repo_id="r", caller=CALLER
                )
                await service.store.put(lease.storage_key, b"pack")
                await lessor.activate(
                    mpack_id, sha256="0" * 64, size_bytes=4, ttl_seconds=300, caller=CALLER
                )
                if ended:
                    await lessor.revoke(mpack_id, reason="test", caller=CALLER)
                return mpack_id

        return run_apart(work())

    def sql(self, statement: str) -> object:
        async def work() -> object:
            connection = await asyncpg.connect(driver_url(self.database_url))
            try:
                return await connection.fetchval(statement)
            finally:
                await connection.close()

        return run_apart(work())

    def sql_script(self, statements: str) -> None:
        async def work() -> None:
            connection = await asyncpg.connect(driver_url(self.database_url))
            try:
                await connection.execute(statements)
            finally:
                await connection.close()

        run_apart(work())

    def blobs(self) -> int:
        return len(self.view.packs())
