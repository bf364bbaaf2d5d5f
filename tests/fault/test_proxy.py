"""deploy/compose/haproxy.cfg in front of two real gateways: one of them stops, nobody notices."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx2

from gateway.cli.serve import listening_socket
from tests.installed import installed
from tests.integration.gateways import serving, settings_for
from tests.leasing import until
from tests.unit.test_tidy import TOP


def configuration(port: int, replicas: Sequence[int]) -> str:
    """The shipped one with other addresses, and without the names that only compose knows."""
    text = (TOP / "deploy/compose/haproxy.cfg").read_text()
    text = text.replace("bind :8080", f"bind 127.0.0.1:{port}")
    text = re.sub(r"^resolvers docker\n(?: +.*\n)+", "", text, flags=re.MULTILINE)
    text = text.replace(" resolvers docker init-addr last,libc,none", "")
    text = re.sub(r"^ +server .*\n", "", text, flags=re.MULTILINE)
    servers = [f"    server r{number} 127.0.0.1:{at}" for number, at in enumerate(replicas)]
    return text + "\n".join(servers) + "\n"


@asynccontextmanager
async def proxy(folder: Path, replicas: Sequence[int]) -> AsyncIterator[str]:
    program = installed("haproxy", package="haproxy")
    with listening_socket("127.0.0.1") as free:
        port = free.getsockname()[1]
    file = folder / "haproxy.cfg"
    file.write_text(configuration(port, replicas))
    process = await asyncio.create_subprocess_exec(
        program, "-db", "-f", str(file), stdout=asyncio.subprocess.DEVNULL
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


async def test_a_replica_that_stops_is_not_noticed(database_url: str, tmp_path: Path) -> None:
    settings = settings_for(database_url, tmp_path / "data")
    async with serving(settings) as staying, httpx2.AsyncClient(trust_env=False) as http:
        other = serving(replace(settings, public_url=None))
        leaving = await other.__aenter__()
        async with proxy(tmp_path, [staying.port, leaving.port]) as url:

            async def answers() -> bool:
                try:
                    return (await http.get(url + "/readyz")).status_code == 200
                except httpx2.TransportError:
                    return False

            await until(answers)
            assert (await http.get(url + "/metrics")).status_code == 404
            served = {(await http.get(url + "/livez")).headers["x-request-id"] for _ in range(4)}
            assert len(served) == 4
            statuses: list[int] = []
            ending = asyncio.ensure_future(other.__aexit__(None, None, None))
            while not ending.done() or len(statuses) < 100:
                statuses.append((await http.get(url + "/livez")).status_code)
            await ending
            assert set(statuses) == {200}
