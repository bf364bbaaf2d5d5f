"""What tests of pushes share: a service on a fresh database, and a look at what it stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.packs.push import PushResult, PushService
from gateway.packs.repos import Repo, Repos
from gateway.packs.segments import SegmentWriter, StoreResult
from gateway.packs.uploads import Uploads
from gateway.wire.body import decode
from gateway.wire.limits import WireLimits
from gateway.wire.messages import PushObject, PushRequest
from leases.clock import SystemClock
from leases.database import Database
from leases.lessor import Caller
from leases.log import EventLog
from leases.policy import LeasePolicy
from leases.postgres_ledger import PostgresLedger
from leases.steps import Steps, no_steps
from tests.factories import BRANCH, History, push_body
from tests.fakes import MemoryStore

CALLER = Caller(actor="token:test", request_id="request-1")
LIMITS = WireLimits()

# Everything a push may write. `segments` is apart: a pending one may stay after a failed push.
CONTENT_TABLES = (
    *("objects", "mpack_index", "snapshots", "commits", "commit_graph", "introductions"),
    *("object_refs", "snapshot_refs", "commit_refs", "branches"),
)


@dataclass(slots=True)
class Gate:
    """The push side of a gateway, without HTTP."""

    database: Database
    store: MemoryStore
    log: EventLog
    repos: Repos
    segments: SegmentWriter
    pushes: PushService

    async def repo(self, slug: str = "demo") -> Repo:
        return await self.repos.ensure(owner="ada", slug=slug, visibility="public", caller=CALLER)

    async def push(
        self, repo: Repo, bundle: Mapping[str, Any], *, branch: str = BRANCH, force: bool = False
    ) -> PushResult:
        """A push as it comes over the wire."""
        body = push_body(bundle, branch=branch, force=force)
        request = decode(body, PushRequest, limits=LIMITS)
        return await self.pushes.push(repo, request, CALLER)

    async def push_objects(self, repo: Repo, history: History) -> StoreResult:
        objects = [PushObject(**item) for item in history.objects()]
        return await self.segments.store(repo.repo_id, objects, CALLER)

    async def count(self, table: str) -> int:
        row = await self.database.row(f"SELECT count(*) FROM {table}")
        return int(row[0])

    async def counts(self) -> dict[str, int]:
        return {table: await self.count(table) for table in CONTENT_TABLES}

    async def head(self, repo: Repo, branch: str = BRANCH) -> str | None:
        row = await self.database.fetchrow(
            "SELECT head_commit_id FROM branches WHERE repo_id = $1 AND name = $2",
            repo.repo_id,
            branch,
        )
        return None if row is None else row[0]

    async def events(self, repo: Repo) -> list[str]:
        stored = await self.log.read_stream(f"repo/{repo.repo_id}")
        return [event.type for event in stored]


def gate_on(database: Database, *, steps: Steps = no_steps) -> Gate:
    store = MemoryStore()
    log = EventLog(PostgresLedger(database), SystemClock())
    segments = SegmentWriter(database, store, steps)
    return Gate(
        database=database,
        store=store,
        log=log,
        repos=Repos(database, log),
        segments=segments,
        pushes=PushService(
            database, log, segments, uploads=uploads_of(store), limits=LIMITS, steps=steps
        ),
    )


def uploads_of(store: MemoryStore) -> Uploads:
    return Uploads(store, LeasePolicy(), upload_bytes_max=LIMITS.upload_bytes_max)


def another_gate(gate: Gate, engine: AsyncEngine) -> Gate:
    """A second replica on the same database and store; its database is the caller's to close."""
    other = gate_on(Database(engine))
    other.store.blobs = gate.store.blobs
    return other
