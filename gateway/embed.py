"""The gateway inside somebody else's program, without its HTTP side.

    async with Gateway(engine, storage) as gateway:
        answer = await gateway.wire_fetch_mpack(session, repo_id, want=…, have=…, ttl_seconds=300)

The promise: the stored pack is deleted once `ttl_seconds` have passed and not before; a deletion
that fails never reaches the caller; each call that stores a pack leads to exactly one deletion.
Whoever opens the gateway keeps it open: its alarm, workers and batcher live in this context. What
is left when it closes is deleted by whichever gateway is open next on the same database.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Protocol, Self, TypedDict

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from gateway.packs.fetch import FetchAnswer, PackService
from gateway.packs.policy import PackPolicy
from gateway.packs.splice import Snapshots
from gateway.packs.spool import Encoding
from gateway.packs.transaction import Reader
from gateway.wire.limits import WireLimits
from gateway.wire.render import rfc3339
from leases.database import Database, translated
from leases.engine import LeaseEngine
from leases.lessor import Caller
from leases.policy import LeasePolicy
from leases.ports import BlobStore, Clock
from leases.steps import Steps, no_steps


class HasPolicies(Protocol):
    """What the gateway needs to be told; `gateway.settings.Settings` has it too."""

    @property
    def lease(self) -> LeasePolicy: ...

    @property
    def pack(self) -> PackPolicy: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedSettings:
    """The settings of a gateway that is embedded: its numbers."""

    lease: LeasePolicy = field(default_factory=LeasePolicy)
    pack: PackPolicy = field(default_factory=PackPolicy)


class MpackAnswer(TypedDict):
    """What `wire_fetch_mpack` answers; without URLs `mpack` holds the bytes, and the ids and times
    are None.
    """

    mpack_id: str | None
    mpack_url: str | None
    mpack: bytes | None
    sha256: str
    size_bytes: int
    expires_at: str | None
    expires_in: float | None
    encoding: str
    counts: dict[str, int]
    shared: bool


class Gateway:
    """A gateway on a host's engine and storage backend. An async context manager.

    The engine is not used itself, nor closed: the gateway has a pool of its own with the same
    connect arguments. The database must be migrated (`schema.migrate.upgrade`). The backend needs
    `BlobStore`'s members only; the optional ones are used where it has them.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        storage: BlobStore,
        settings: HasPolicies | None = None,
        *,
        clock: Clock | None = None,
        steps: Steps = no_steps,
    ) -> None:
        told = settings or EmbedSettings()
        self._database = Database(engine)
        self.leases = LeaseEngine(
            self._database,
            storage,
            told.lease,
            clock=clock,
            steps=steps,
            # Uploads of gateways that serve HTTP beside this one count against the same quotas.
            upload_bytes_max=WireLimits().upload_bytes_max,
        )
        self.packs = PackService(self.leases, told.pack, steps=steps)
        self._open = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as opening:
            opening.push_async_callback(self._database.close)
            await opening.enter_async_context(self.leases)
            await opening.enter_async_context(self.packs)
            self._open = opening.pop_all()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._open.aclose()

    async def wire_fetch_mpack(
        self,
        session: AsyncSession,
        repo_id: str,
        *,
        want: Iterable[str],
        have: Iterable[str] = (),
        ttl_seconds: float | None = None,
        share: bool = True,
        encoding: Encoding = "raw",
        snapshots: Snapshots = "whole",
        actor: str = "host",
        request_id: str | None = None,
    ) -> MpackAnswer:
        """A pack of exactly what the client lacks, behind a URL that lives `ttl_seconds`.

        Shapes:  want, have: commit ids, with or without `sha256:`; the answer uses want's form.
        Units:   ttl_seconds: any number above 0 up to the longest life of a lease.
        Effects: reads through `session` and nothing else with it: never a commit, rollback or
                 close, and no read after the first call to the store.
        Errors:  gateway.errors.UnknownCommit, InvalidTtl, IncompleteRepo, TooLarge;
                 leases.errors.QuotaReached with `retry_after_seconds` among its fields, OverQuota;
                 Unavailable.
        """

        @asynccontextmanager
        async def open_reader() -> AsyncIterator[Reader]:
            with translated():
                yield session

        answer = await self.packs.fetch_mpack(
            open_reader,
            repo_id,
            want=want,
            have=have,
            ttl_seconds=ttl_seconds,
            share=share,
            encoding=encoding,
            snapshots=snapshots,
            caller=Caller(actor=actor, request_id=request_id),
        )
        return _told(answer)


def _told(answer: FetchAnswer) -> MpackAnswer:
    return MpackAnswer(
        mpack_id=answer.mpack_id,
        mpack_url=answer.mpack_url,
        mpack=answer.mpack,
        sha256=answer.sha256,
        size_bytes=answer.size_bytes,
        expires_at=None if answer.expires_at is None else rfc3339(answer.expires_at),
        expires_in=answer.expires_in,
        encoding=answer.encoding,
        counts=asdict(answer.counts),
        shared=answer.shared,
    )
