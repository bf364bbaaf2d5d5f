"""python -m benchmarks.etcd_worker URL FOLDER: deletes the blob of each key that etcd deletes.

It watches, and after a broken connection it watches on from the revision behind the last one.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import uvloop

PREFIX = "blob/"
_AFTER_PREFIX = "blob0"
_AGAIN_SECONDS = 0.02


def quoted(text: str) -> str:
    """As etcd's gateway takes and gives bytes."""
    return base64.b64encode(text.encode()).decode()


async def watch(url: str, folder: Path) -> None:
    """Until it is ended."""
    wish: dict[str, Any] = {
        "key": quoted(PREFIX),
        "range_end": quoted(_AFTER_PREFIX),
        "filters": ["NOPUT"],
    }
    async with httpx2.AsyncClient(base_url=url, timeout=None, trust_env=False) as http:
        while True:
            with suppress(httpx2.TransportError):
                body = {"create_request": wish}
                async with http.stream("POST", "/v3/watch", json=body) as answer:
                    async for line in answer.aiter_lines():
                        told = json.loads(line).get("result", {})
                        for event in told.get("events", ()):
                            key = base64.b64decode(event["kv"]["key"]).decode()
                            (folder / key.removeprefix(PREFIX)).unlink(missing_ok=True)
                            wish["start_revision"] = int(event["kv"]["mod_revision"]) + 1
            await asyncio.sleep(_AGAIN_SECONDS)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(watch(sys.argv[1], Path(sys.argv[2])))
