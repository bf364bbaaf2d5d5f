"""A PostgreSQL of its own, for what is run outside of pytest or breaks the server."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway.embedded_postgres import EmbeddedPostgres
from tests.databases import make_template


@contextmanager
def own_postgres(**settings: str) -> Iterator[EmbeddedPostgres]:
    """A running server with the migrated template; nobody else's is touched."""
    folder = Path(tempfile.mkdtemp(prefix="mpack-gateway-fault-"))
    folder.chmod(0o711)  # Started by root, the server runs as another account.
    server = EmbeddedPostgres(folder / "postgres", settings={"fsync": "off", **settings})
    try:
        server.start()
        make_template(server)
        yield server
    finally:
        server.remove()
        shutil.rmtree(folder)
