"""Single objects behind URLs: each copied under a lease of its own, as a pack is.

A segment holds other objects too, and durable blobs are nobody's to be read by URL; so an object
that is asked for by URL becomes a transient blob, gone at its deadline like every other.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import text

from gateway.packs.deposit import Deposits
from gateway.packs.objects import ObjectReader
from gateway.packs.places import Places
from gateway.packs.plan import Counts, Plan
from gateway.packs.policy import PackPolicy
from gateway.packs.sharing import OpenReader
from gateway.packs.spool import PackWriter, Spool, SpoolBudget
from gateway.packs.store_calls import store_call
from gateway.packs.turns import BuildTurns
from gateway.packs.uploads import Presigned
from gateway.packs.url_life import checked_ttl, url_seconds
from gateway.storage.availability import Admission, Need
from gateway.together import together
from gateway.wire.ids import IdForm
from leases.engine import LeaseEngine
from leases.errors import Corrupt
from leases.ids import new_mpack_id
from leases.lessor import Caller

_AT_ONCE = 4
_LARGE = text("""
SELECT object_id, size_bytes FROM objects
 WHERE object_id = ANY(CAST(:ids AS text[])) AND size_bytes > :inline_max""")


class ObjectUrls:
    """Hands out URLs to read objects of a repo."""

    def __init__(
        self,
        engine: LeaseEngine,
        objects: ObjectReader,
        deposits: Deposits,
        *,
        turns: BuildTurns,
        admission: Admission,
        budget: SpoolBudget,
        policy: PackPolicy,
    ) -> None:
        self._engine = engine
        self._objects = objects
        self._deposits = deposits
        self._turns = turns
        self._admission = admission
        self._budget = budget
        self._policy = policy

    async def presign(
        self,
        open_reader: OpenReader,
        repo_id: str,
        object_ids: Collection[str],
        *,
        ttl_seconds: float | None,
        ttl_min_seconds: float,
        caller: Caller,
    ) -> Presigned:
        """URLs of the large ones among these objects, which the repo holds; the small ones are
        quicker had inline, and without URLs all are.

        Effects: a blob and its lease for each URL.
        Errors:  InvalidTtl; IncompleteRepo; QuotaReached unless all have room; Unavailable and
                 its kinds.
        """
        ttl_seconds = checked_ttl(self._engine.policy, ttl_seconds, at_least=ttl_min_seconds)
        if not self._engine.store.supports_presign or not object_ids:
            return Presigned(urls={}, inline=list(object_ids))
        async with open_reader() as reader:
            asked = {"ids": list(object_ids), "inline_max": self._policy.presign_inline_bytes_max}
            large = sorted(map(tuple, await reader.execute(_LARGE, asked)))
        wanted = {new_mpack_id(): size_bytes for _object_id, size_bytes in large}
        urls: dict[str, str] = {}
        waiting = iter([(one, mpack_id) for (one, _), mpack_id in zip(large, wanted, strict=True)])

        async def work() -> None:
            for object_id, mpack_id in waiting:
                urls[object_id] = await self._url(
                    open_reader,
                    repo_id,
                    object_id,
                    mpack_id=mpack_id,
                    ttl_seconds=ttl_seconds,
                    caller=caller,
                )

        async with self._engine.quotas.room(repo_id, wanted), together() as tasks:
            for _ in range(min(_AT_ONCE, len(large))):
                tasks.create_task(work())
        return Presigned(urls=urls, inline=[one for one in object_ids if one not in urls])

    async def _url(
        self,
        open_reader: OpenReader,
        repo_id: str,
        object_id: str,
        *,
        mpack_id: str,
        ttl_seconds: float,
        caller: Caller,
    ) -> str:
        engine = self._engine
        spool = Spool(self._policy, self._budget)
        try:
            async with self._turns.turn():
                self._admission.check(Need.READING, Need.WRITING)
                plan = await self._copy(open_reader, repo_id, object_id, spool)
                lease = await self._deposits.reserve(
                    mpack_id, repo_id=repo_id, cache_key=None, plan=plan, caller=caller
                )
                made = await self._deposits.store(plan, lease, caller)
                deposited = await self._deposits.activate(
                    lease, made, counts=plan.counts, ttl_seconds=ttl_seconds, caller=caller
                )
        finally:
            await spool.close()
        expires_at = deposited.lease.expires_at
        assert expires_at is not None
        with store_call("presign_get"):
            return await engine.store.presign_get(
                lease.storage_key,
                expires_in=url_seconds(expires_at, engine.database_clock.now()),
            )

    async def _copy(
        self, open_reader: OpenReader, repo_id: str, object_id: str, spool: Spool
    ) -> Plan:
        """The object in the spool, as a plan that has nothing left to be filled in."""
        writer = PackWriter(spool, encoding="raw", zstd_level=self._policy.zstd_level)
        stored = await self._objects.open(open_reader, repo_id, object_id)
        try:
            async for chunk in stored.chunks(0, stored.size_bytes):
                await writer.write(chunk)
        finally:
            await stored.close()
        await writer.flush()
        if writer.digest() != object_id:
            raise Corrupt("A stored object does not match its id.", object_id=object_id)
        return Plan(
            writer=writer,
            form=IdForm.BARE,
            places=Places(),
            counts=Counts(commits=0, snapshots=0, objects=1),
            bytes_planned=stored.size_bytes,
        )
