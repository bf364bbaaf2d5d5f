"""What tests of fetches share: a repo that was pushed to, a gateway beside it, naive answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgpack
import zstandard
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from gateway.embed import EmbedSettings, Gateway, MpackAnswer
from gateway.packs.policy import PackPolicy
from gateway.packs.push import PushService
from gateway.packs.repos import Repo
from gateway.packs.segments import SegmentWriter
from gateway.packs.sharing import OpenReader
from gateway.packs.transaction import reading
from leases.database import Database
from leases.lessor import Caller
from leases.policy import LeasePolicy
from leases.steps import Steps, no_steps
from tests.factories import History
from tests.fakes import MemoryStore
from tests.integration.pushing import LIMITS, Gate, gate_on, uploads_of

CALLER = Caller(actor="test", request_id="request-1")


@dataclass(slots=True, kw_only=True)
class Bench:
    """One replica: a gateway, the store and database behind it, a repo with a history."""

    gateway: Gateway
    engine: AsyncEngine
    database: Database
    store: MemoryStore
    gate: Gate
    repos: dict[str, Repo] = field(default_factory=dict)

    async def pushed(self, history: History, slug: str = "demo") -> str:
        """Push this history; the repo's id."""
        repo = self.repos[slug] = await self.gate.repo(slug)
        await self.gate.push_objects(repo, history)
        await self.gate.push(repo, history.bundle(), force=True)
        return repo.repo_id

    async def pushed_all(self, history: History, slug: str = "demo") -> str:
        """Push a history of several heads, each as a branch of its own; the repo's id."""
        repo = self.repos[slug] = await self.gate.repo(slug)
        await self.gate.push_objects(repo, history)
        inner = {parent for one in history.commits.values() for parent in one.parent_ids}
        for number, head in enumerate(sorted(history.commits.keys() - inner)):
            below = history.ancestry([head])
            commits = [one for one in history.commits.values() if one.commit_id in below]
            await self.gate.push(repo, history.bundle(commits), branch=f"branch-{number}")
        return repo.repo_id

    def open_reader(self) -> OpenReader:
        return lambda: reading(self.database)

    async def fetch(
        self, repo_id: str, want: Iterable[str], have: Iterable[str] = (), **options: Any
    ) -> MpackAnswer:
        """A fetch as a host makes it, on a session of its own."""
        options = {"ttl_seconds": 300, **options}
        async with AsyncSession(self.engine) as session:
            return await self.gateway.wire_fetch_mpack(
                session, repo_id, want=want, have=have, **options
            )

    def stored(self, answer: MpackAnswer) -> bytes:
        """The stored pack's bytes."""
        key = f"transient/{self.gateway.leases.log_id}/{answer['mpack_id']}"
        return self.store.blobs[key]

    def pack(self, answer: MpackAnswer) -> dict[str, Any]:
        """The stored pack."""
        return unpacked(self.stored(answer))

    def transient(self) -> list[str]:
        """The keys of all leased blobs that are there."""
        return [key for key in self.store.blobs if "/." not in key and "transient/" in key]


def unpacked(data: bytes) -> dict[str, Any]:
    """A pack's map, compressed or not."""
    if data.startswith(b"\x28\xb5\x2f\xfd"):
        data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    pack: dict[str, Any] = msgpack.unpackb(data)
    return pack


def told_whole(pack: Mapping[str, Any]) -> dict[str, Any]:
    """A pack whose snapshots are told by changes, as it is when they are told whole."""
    manifests: dict[str, dict[str, str]] = {}
    snapshots = []
    for entry in pack["snapshots"]:
        manifest = entry.get("manifest")
        if manifest is None:
            manifest = manifests[entry["base_snapshot_id"]] | entry["delta"]
        manifest = {path: manifest[path] for path in sorted(manifest) if manifest[path]}
        manifests[entry["snapshot_id"]] = manifest
        snapshots.append(
            {
                "snapshot_id": entry["snapshot_id"],
                "manifest": manifest,
                "created_at": entry["created_at"],
            }
        )
    return {**pack, "version": 1, "snapshots": snapshots}


def ids_of(pack: Mapping[str, Any]) -> tuple[set[str], set[str], set[str]]:
    """What a pack holds; each at most once."""
    found = []
    for name, key in (("commits", "commit_id"), ("snapshots", "snapshot_id")):
        found.append([entry[key] for entry in pack[name]])
    found.append([entry["object_id"] for entry in pack["objects"]])
    assert all(len(ids) == len(set(ids)) for ids in found)
    commits, snapshots, objects = map(set, found)
    return commits, snapshots, objects


def lacking(
    history: History, want: Iterable[str], have: Iterable[str]
) -> tuple[set[str], set[str], set[str]]:
    """What a client lacks, the naive way: everything below want without everything below have."""

    def held(heads: Iterable[str]) -> tuple[set[str], set[str], set[str]]:
        commits = history.ancestry(one for one in heads if one in history.commits)
        made = [history.commits[one] for one in commits]
        objects = {object_id for one in made for object_id in one.manifest.values()}
        return commits, {one.snapshot_id for one in made}, objects

    (commits, snapshots, objects), known = held(want), held(have)
    return commits - known[0], snapshots - known[1], objects - known[2]


def settings_of(lease: LeasePolicy | None = None, **pack: Any) -> EmbedSettings:
    """Settings of a test's gateway."""
    return EmbedSettings(lease=lease or LeasePolicy(), pack=PackPolicy(**pack))


@asynccontextmanager
async def bench_on(
    engine: AsyncEngine,
    *,
    store: MemoryStore | None = None,
    settings: EmbedSettings | None = None,
    steps: Steps = no_steps,
) -> AsyncIterator[Bench]:
    """A replica for the time of the block."""
    database = Database(engine)
    gate = gate_on(database)
    if store is not None:
        gate.store = store
        gate.segments = SegmentWriter(database, store)
        gate.pushes = PushService(
            database, gate.log, gate.segments, uploads=uploads_of(store), limits=LIMITS
        )
    try:
        async with Gateway(engine, gate.store, settings, steps=steps) as gateway:
            yield Bench(
                gateway=gateway, engine=engine, database=database, store=gate.store, gate=gate
            )
    finally:
        await database.close()
