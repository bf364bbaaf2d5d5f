"""The command of a run that is too long for every change: a seed, servers of its own, a verdict."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Protocol

from tests.databases import cloned
from tests.fault.processes import Gateways, gateways_on
from tests.fault.servers import own_postgres
from tests.rgw import stop_server

_SEED_MAX = 1 << 32


class Told(Protocol):
    """What a run did and found: a dataclass; `holds` says whether every promise was kept."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def holds(self) -> bool: ...


@asynccontextmanager
async def own_gateways() -> AsyncIterator[Gateways]:
    """Gateways on a database server of their own, outside of pytest."""
    with (
        own_postgres() as server,
        cloned(server) as url,
        tempfile.TemporaryDirectory(prefix="mpg-fault-") as folder,
    ):
        async with gateways_on(url, Path(folder)) as gateways:
            yield gateways


def keep(told: Told, path: Path | None) -> None:
    """Write what was found so far; without a path, nothing."""
    if path is not None:
        path.write_text(json.dumps(asdict(told), indent=1, sort_keys=True) + "\n")


def run_command(
    parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], Awaitable[Told]]
) -> int:
    """Run, tell, keep; 1 when a promise was broken. What is long is told by its length."""
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(_SEED_MAX))
    parser.add_argument("--json", type=Path, help="keep what was found here")
    asked = parser.parse_args()
    print(f"seed {asked.seed}", flush=True)

    async def whole() -> Told:
        return await run(asked)

    try:
        told = asyncio.run(whole())
    finally:
        stop_server()
    keep(told, asked.json)
    for name, value in asdict(told).items():
        print(f"{name}: {len(value) if isinstance(value, dict) else value}")
    return int(not told.holds)
