"""Fetch: what the client lacks, as a leased pack behind a URL, or inline.

    service = PackService(engine, policy)
    async with engine, service: answer = await service.fetch_mpack(open_reader, repo_id, …)

Whatever is read from the database is read before the first call to the store, through a connection
that the caller lends (`open_reader`); no connection is held while waiting or building.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Self

import structlog

from gateway.packs.build import PackBuilder
from gateway.packs.clone_keys import CloneKeys
from gateway.packs.deposit import Deposits
from gateway.packs.doorkeeper import Doorkeeper
from gateway.packs.inline import InlinePack, inline_nothing, inline_of, read_back
from gateway.packs.joined import Joined
from gateway.packs.kept_bytes import KeptBytes
from gateway.packs.lacking import Lacking, Question, bare_ids, check_wanted, find_lacking
from gateway.packs.object_urls import ObjectUrls
from gateway.packs.objects import ObjectReader
from gateway.packs.observe import NOBODY, PackObserver, SlotAnswer
from gateway.packs.plan import Counts, Plan, count_entities
from gateway.packs.policy import PackPolicy
from gateway.packs.sharing import Holding, OpenReader, PackSharing, Wish, check_inline
from gateway.packs.slots import Slots
from gateway.packs.splice import Snapshots
from gateway.packs.spool import Encoding, Spool, SpoolBudget
from gateway.packs.store_calls import store_call
from gateway.packs.stream import Made
from gateway.packs.url_life import checked_ttl, seconds_left, url_seconds
from gateway.storage.availability import Availability, Need
from gateway.storage.watched import watched
from gateway.wire.ids import IdForm
from leases.database import Database
from leases.engine import LeaseEngine
from leases.errors import BlobMissing, Failure, OverQuota, QuotaReached
from leases.lessor import Caller
from leases.steps import Step, Steps, no_steps

_TIDY_SECONDS = 600.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchAnswer:
    """A fetched pack: behind a URL, or, where the store has none, the bytes themselves.

    Units:   expires_in: seconds of life that the URL has left. Both ends are None with `mpack`.
    """

    sha256: str
    size_bytes: int
    encoding: Encoding
    counts: Counts
    mpack_id: str | None = None
    mpack_url: str | None = None
    mpack: bytes | None = None
    expires_at: datetime | None = None
    expires_in: float | None = None
    shared: bool = False


class PackService:
    """Answers fetches. An async context manager; enter it inside its engine."""

    def __init__(
        self,
        engine: LeaseEngine,
        policy: PackPolicy | None = None,
        *,
        availability: Availability | None = None,
        reads: Database | None = None,
        steps: Steps = no_steps,
        observer: PackObserver = NOBODY,
    ) -> None:
        self.policy = policy or PackPolicy()
        if problems := self.policy.problems():
            raise ValueError("; ".join(problems))
        self._engine = engine
        self._reads = reads
        self._step = steps
        self._observer = observer
        self.budget = SpoolBudget(self.policy.spool_bytes_max)
        self._availability = availability or Availability(engine)
        self._store = watched(engine.store, self._availability)
        self._builder = PackBuilder(self._store, self.policy, self.budget)
        self.objects = ObjectReader(
            self._store, self.policy, self.budget, admission=self._availability
        )
        self._clone_keys = CloneKeys()
        self._questions = Joined[Lacking]()
        self._doorkeeper = Doorkeeper(self.policy.inline_keep_window_seconds)
        self.kept = KeptBytes(engine, budget_bytes=self.policy.transient_bytes_budget)
        self._tasks = asyncio.TaskGroup()
        self._running: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        engine = self._engine
        self._tasks = await asyncio.TaskGroup().__aenter__()
        self._slots = Slots(engine.database, engine.instance, self.policy, reads=self._reads)
        deposits = Deposits(engine, self._builder, store=self._store, steps=self._step)
        self.sharing = PackSharing(
            engine,
            self._slots,
            deposits,
            tasks=self._tasks,
            policy=self.policy,
            budget=self.budget,
            admission=self._availability,
            kept=self.kept,
            steps=self._step,
            observer=self._observer,
        )
        self.object_urls = ObjectUrls(
            engine,
            self.objects,
            deposits,
            turns=self.sharing.turns,
            admission=self._availability,
            budget=self.budget,
            policy=self.policy,
        )
        await self._slots.listen()
        for work in (self._tidy(), self._availability.run(), self.kept.run()):
            self._running.append(self._tasks.create_task(work))
        return self

    async def __aexit__(self, *_error: object) -> None:
        for task in (*self._running, *self.sharing.building):
            task.cancel()
        await self._tasks.__aexit__(None, None, None)

    async def fetch_mpack(
        self,
        open_reader: OpenReader,
        repo_id: str,
        *,
        want: Iterable[str],
        have: Iterable[str],
        seen: Collection[str] = (),
        ttl_seconds: float | None = None,
        ttl_min_seconds: float = 0.0,
        share: bool = True,
        encoding: Encoding = "raw",
        snapshots: Snapshots = "whole",
        caller: Caller,
    ) -> FetchAnswer:
        """A pack of exactly what the client lacks, behind a URL that lives `ttl_seconds`.

        `seen` are heads (bare ids) that the repo was just seen to have: who wants no others is not
        looked up again.

        Effects: stores a pack under a lease, or renews the lease of one that is shared.
        Errors:  UnknownCommit, InvalidTtl, IncompleteRepo; TooLarge for an inline answer;
                 Unavailable (BuildsBusy, SpoolFull, StoreUnavailable, …).
        """
        ttl_seconds = checked_ttl(self._engine.policy, ttl_seconds, at_least=ttl_min_seconds)
        question = Question(repo_id=repo_id, want=list(want), have=list(have))
        wish = await self._wish(
            open_reader,
            question,
            seen=seen,
            encoding=encoding,
            snapshots=snapshots,
            ttl_seconds=ttl_seconds,
            caller=caller,
        )
        if not self._engine.store.supports_presign:
            return await self._built_in_memory(wish)
        if share and ttl_seconds >= self._engine.policy.share_ttl_min_seconds:
            holding = await self.sharing.shared(wish)
        else:
            holding = await self.sharing.alone(wish)
        return await self._signed(holding, wish)

    async def fetch_inline(
        self,
        open_reader: OpenReader,
        repo_id: str,
        *,
        want: Iterable[str],
        have: Iterable[str],
        seen: Collection[str] = (),
        pairs: Mapping[str, Any],
        share: bool = True,
        snapshots: Snapshots = "whole",
        caller: Caller,
    ) -> InlinePack:
        """The pack itself with `pairs` (`branch_heads`) added to its map.

        What nobody shares is built from the segments and answered, under no lease; so is everything
        while the store takes no blobs or a quota leaves no room for it. It is stored for others
        from the second asking on.

        Errors: as `fetch_mpack`; TooLarge (413) above `inline_bytes_max`, always before the first
                byte.
        """
        question = Question(repo_id=repo_id, want=list(want), have=list(have))
        wish = await self._wish(
            open_reader, question, seen=seen, snapshots=snapshots, inline=True, caller=caller
        )
        if wish.known_lacking is not None and not wish.known_lacking.commits:
            return inline_nothing(pairs, snapshots)
        storing = self._engine.store.supports_presign and self._availability.may(Need.WRITING)
        if not (storing and share and await self._worth_keeping(wish)):
            return await self._passed_through(wish, pairs)
        self._availability.check(Need.READING)
        try:
            return await self._shared_inline(wish, pairs)
        except (QuotaReached, OverQuota):
            # It would have been stored for those who come later; this caller needs no room.
            return await self._passed_through(wish, pairs)

    # The parts of a fetch. -----------------------------------------------------------------------

    async def _wish(
        self,
        open_reader: OpenReader,
        question: Question,
        *,
        seen: Collection[str],
        encoding: Encoding = "raw",
        snapshots: Snapshots = "whole",
        inline: bool = False,
        ttl_seconds: float | None = None,
        caller: Caller,
    ) -> Wish:
        form = IdForm.of_first(question.want)
        key = self._clone_keys.get(question, encoding=encoding, snapshots=snapshots, form=form)
        lacking: Lacking | None = None
        if key is None:
            lacking = await self._lacking(open_reader, question)
            key = lacking.cache_key(encoding=encoding, snapshots=snapshots, form=form)
            self._clone_keys.keep(key, question, encoding=encoding, snapshots=snapshots, form=form)
        elif not set(bare_ids(question.want)) <= set(seen):
            async with open_reader() as reader:
                await check_wanted(reader, question)
        return Wish(
            question=question,
            known_lacking=lacking,
            cache_key=key,
            form=form,
            encoding=encoding,
            snapshots=snapshots,
            ttl_seconds=ttl_seconds or self._engine.policy.ttl_default_seconds,
            caller=caller,
            open_reader=open_reader,
            inline=inline,
        )

    async def _lacking(self, open_reader: OpenReader, question: Question) -> Lacking:
        async def find() -> Lacking:
            async with open_reader() as reader:
                return await find_lacking(reader, question)

        same = (question.repo_id, tuple(question.want), tuple(question.have))
        # What is lacking without a have is what the wants are made of, and that never changes.
        return await self._questions.ask(same, find, lasting=not question.have)

    async def _signed(self, holding: Holding, wish: Wish) -> FetchAnswer:
        counts = await self._counts(holding, wish)
        lease = holding.lease
        assert lease.sha256 is not None
        assert lease.size_bytes is not None
        now = self._engine.database_clock.now()
        with store_call("presign_get"):
            url = await self._engine.store.presign_get(
                lease.storage_key, expires_in=url_seconds(holding.expires_at, now)
            )
        self._step(Step.URL_SIGNED)
        self._observer.served(lease.size_bytes)
        now = self._engine.database_clock.now()
        return FetchAnswer(
            mpack_id=lease.mpack_id,
            mpack_url=url,
            sha256=lease.sha256,
            size_bytes=lease.size_bytes,
            encoding=wish.encoding,
            counts=counts,
            expires_at=holding.expires_at,
            expires_in=seconds_left(holding.expires_at, now, ttl_seconds=wish.ttl_seconds),
            shared=holding.shared,
        )

    async def _counts(self, holding: Holding, wish: Wish) -> Counts:
        """What the pack holds; counted again where this process was not told."""
        if holding.counts is not None:
            return holding.counts
        async with wish.open_reader() as reader:
            counts = await count_entities(reader, await wish.lacking(reader))
        self._slots.remember(holding.lease.mpack_id, counts)
        return counts

    # Inline. -------------------------------------------------------------------------------------

    async def _worth_keeping(self, wish: Wish) -> bool:
        """Whether an inline pack goes through the store: it stands there or is on its way, or
        somebody has asked for it before, and there is room for what nobody was promised.
        """
        now = self._engine.clock.monotonic()
        self._doorkeeper.knock(wish.cache_key, now)
        if await self.sharing.stands(wish):
            return True
        # Meanwhile the others of a crowd that comes at once have knocked, too.
        return self._doorkeeper.asked_again(wish.cache_key, now) and self.kept.has_room()

    async def _passed_through(self, wish: Wish, pairs: Mapping[str, Any]) -> InlinePack:
        """Build it for this caller alone; the spool goes with the answer."""
        spool, counts, _made = await self._built(wish)
        try:
            pack = await inline_of(spool, pairs, counts)
        except BaseException:
            await spool.close()
            raise
        self._observer.served(spool.size_bytes)
        return pack

    async def _built_in_memory(self, wish: Wish) -> FetchAnswer:
        """For a store without URLs: the bytes are the answer."""
        spool, counts, made = await self._built(wish)
        try:
            mpack = await spool.read(0, spool.size_bytes)
        finally:
            await spool.close()
        self._observer.served(len(mpack))
        return FetchAnswer(
            mpack=mpack,
            sha256=made.sha256,
            size_bytes=made.size_bytes,
            encoding=wish.encoding,
            counts=counts,
        )

    async def _built(self, wish: Wish) -> tuple[Spool, Counts, Made]:
        """A pack that is not stored, under no lease: in a spool, which is the caller's to close."""
        self._observer.slot_asked(SlotAnswer.PASSED)
        self._availability.check(Need.READING)
        async with self.sharing.turns.turn():
            began = self._engine.clock.monotonic()
            with self._availability.turn(Need.READING):
                plan = await self.sharing.read_plan(wish)
                spool = Spool(self.policy, self.budget)
                try:
                    check_inline(plan.bytes_planned, self.policy)
                    made = await self._spooled(plan, spool)
                    check_inline(made.size_bytes, self.policy)
                except BaseException:
                    await spool.close()
                    raise
                finally:
                    await plan.writer.spool.close()
            seconds = self._engine.clock.monotonic() - began
        self._step(Step.PACK_BUILT)
        self._observer.built(size_bytes=made.size_bytes, seconds=seconds)
        return spool, plan.counts, made

    async def _spooled(self, plan: Plan, spool: Spool) -> Made:
        async with self._builder.stream(plan) as stream, aclosing(stream.chunks()) as chunks:
            async for chunk in chunks:
                await spool.append(partial(bytes, chunk), work_bytes=len(chunk))
            return stream.made()

    async def _shared_inline(self, wish: Wish, pairs: Mapping[str, Any]) -> InlinePack:
        try:
            return await self._read_back(wish, pairs, gone=())
        except BlobMissing as error:
            # The slot led to a pack whose blob is gone: once more, with a new one.
            _log.warning("shared_pack_gone", **error.fields)
            gone = (str(error.fields.get("mpack_id", "")),)
            return await self._read_back(wish, pairs, gone=gone)

    async def _read_back(
        self, wish: Wish, pairs: Mapping[str, Any], *, gone: tuple[str, ...]
    ) -> InlinePack:
        holding = await self.sharing.shared(wish, gone=gone)
        lease = holding.lease
        assert lease.size_bytes is not None
        check_inline(lease.size_bytes, self.policy)
        try:
            size_bytes, chunks = await read_back(
                self._store,
                key=lease.storage_key,
                size_bytes=lease.size_bytes,
                pairs=pairs,
            )
        except BlobMissing as error:
            raise BlobMissing(mpack_id=lease.mpack_id) from error
        self._observer.served(lease.size_bytes)
        return InlinePack(
            size_bytes=size_bytes, chunks=chunks, counts=holding.counts, mpack_id=lease.mpack_id
        )

    async def _tidy(self) -> None:
        while True:
            await self._engine.clock.sleep(_TIDY_SECONDS)
            try:
                await self._slots.forget_old(self._engine.policy.lease_life_max_seconds)
            except Failure as failure:
                _log.warning("slots_not_tidied", error=failure.code)
