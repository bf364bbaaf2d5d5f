"""python -m benchmarks.pgqueuer_worker DATABASE FOLDER HEARTBEAT_SECONDS: deletes blobs by name.

The settings are the best that were found for deletions at a due time; each says against what.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta
from pathlib import Path

import asyncpg
import uvloop
from pgqueuer.db import AsyncpgPoolDriver
from pgqueuer.models import Job
from pgqueuer.qm import QueueManager
from pgqueuer.queries import Queries

ENTRYPOINT = "delete"
# Jobs taken at a time: of 100, 250 and 1,000 this had the lowest p99 with 10,000 due in a second
# (2.0, 1.8 and 2.4 s on two cores; one worker instead of two: 3.2 s). Its default is 10.
_BATCH = 250
# Its default of 100 ms is what a job is late when the queue was empty before it.
_POLL = timedelta(milliseconds=2)
# A job of a dead worker is seen when somebody looks; by default 30 s pass without a look.
_DEQUEUE_TIMEOUT = timedelta(seconds=0.5)
_CONNECTIONS = 4


async def work(database: str, folder: Path, heartbeat_seconds: float) -> None:
    """Until it is ended."""
    async with asyncpg.create_pool(database, min_size=2, max_size=_CONNECTIONS) as pool:
        manager = QueueManager(Queries(AsyncpgPoolDriver(pool)))
        manager.min_dequeue_poll_interval = _POLL

        @manager.entrypoint(ENTRYPOINT)
        async def delete(job: Job) -> None:
            # In the loop: it takes some 0.15 ms, and nothing is synced.
            assert job.payload is not None
            (folder / job.payload.decode()).unlink(missing_ok=True)

        await manager.run(
            dequeue_timeout=_DEQUEUE_TIMEOUT,
            batch_size=_BATCH,
            heartbeat_timeout=timedelta(seconds=heartbeat_seconds),
            # Statistics are nobody's need here.
            log_aggregation_interval=timedelta(0),
        )


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])))
