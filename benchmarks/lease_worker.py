"""python -m benchmarks.lease_worker DATABASE_URL FOLDER: the service, and what it is told to grant.

It reads one line of JSON, {"names": […], "first": epoch seconds, "step": seconds}, grants those
leases as its own, the first due at that moment and each later one a step on, says so in a line, and
reaps until it is ended.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks import lease_facts
from benchmarks.place import Home, run, serving
from benchmarks.reclaims import in_batches
from gateway import logs


async def work(home: Home) -> None:
    """Until it is ended."""
    async with serving(home) as service:
        print("ready", flush=True)
        told = json.loads(await asyncio.to_thread(sys.stdin.readline))
        engine = service.engine
        first = datetime.fromtimestamp(told["first"], UTC)
        due = {
            name: first + timedelta(seconds=number * told["step"])
            for number, name in enumerate(told["names"])
        }
        now = engine.database_clock.now()
        for batch in in_batches(told["names"]):
            await engine.log.append(
                [lease_facts.reserved(one, log_id=engine.log_id, now=now) for one in batch]
            )
            await engine.log.append(
                [lease_facts.activated(one, now=now, delete_at=due[one]) for one in batch]
            )
            for one in batch:
                engine.alarm.arm(due[one])
        print("granted", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    with Path(os.devnull).open("w") as nowhere:
        logs.configure(log_format="json", level="info", stream=nowhere)
        run(work(Home(url=sys.argv[1], folder=Path(sys.argv[2]), server_pid=0)))
