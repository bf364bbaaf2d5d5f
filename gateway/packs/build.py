"""Copies a pack's objects out of their segments, in bounded memory and few reads.

A pack's order (by path) has nothing to do with that of its segments (as pushed), and a read a piece
would be a request for every object. So neighbouring entries are read as one range, several ranges
at once, and each is put at its place, known beforehand because every length is. Where the entries
of some MiB of the pack lie close enough together, they are gathered in memory while the store takes
those before them; otherwise the segments are read from front to back into a scratch spool first,
which then is the pack's end. An entry is copied as it is; only its head is looked at.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

from gateway.off_loop import off_loop
from gateway.packs.foreign import extract_foreign
from gateway.packs.pieces import (
    Piece,
    Run,
    cut_pieces,
    join_runs,
    reading_order,
    spliced,
    windows,
    written,
)
from gateway.packs.places import Places
from gateway.packs.plan import Plan
from gateway.packs.policy import PackPolicy
from gateway.packs.spool import Spool, SpoolBudget
from gateway.packs.store_calls import stored_range
from gateway.packs.stream import PackStream, Parts
from gateway.together import together
from gateway.wire.ids import PREFIX, IdForm
from leases.errors import Corrupt
from leases.ports import BlobStore

# Objects of one pack lie in many segments, and in each in another order than in the pack. As long
# as the entries of a window make ranges of some size, they are gathered in memory; the other way,
# through a file, costs two more passes over the disk. Bytes that are hashed and stored while the
# processor's caches still hold them cost half as much, so the small window is tried first; in all
# as much is read ahead as one large window holds. All numbers: benchmark `packs`.
_WINDOW_BYTES = 2 * 1024 * 1024
_WINDOW_BYTES_MAX = 8 * 1024 * 1024
_RANGE_BYTES_MIN = 64 * 1024
# Less is worked on where it is: a change of threads costs more.
_INLINE_PLACES = 256
_INLINE_BYTES = 256 * 1024

ReadRange = Callable[[int, int], Awaitable[bytes]]
T = TypeVar("T")


class PackBuilder:
    """Makes planned packs, each as a stream of bytes."""

    def __init__(self, store: BlobStore, policy: PackPolicy, budget: SpoolBudget) -> None:
        self._store = store
        self.policy = policy
        self._budget = budget

    @asynccontextmanager
    async def stream(self, plan: Plan) -> AsyncIterator[PackStream]:
        """The pack as a stream that can be read as long as the block lasts.

        Errors: IncompleteRepo when a blob is missing; Corrupt when it does not hold what the index
                says; StoreUnavailable; SpoolFull. All of them while reading the stream, too.
        """
        foreign, scratch = (Spool(self.policy, self._budget) for _ in range(2))
        try:
            parts = await self._parts(plan, foreign=foreign, scratch=scratch)
            longer = _longer(plan.form) * len(plan.places)
            size_bytes = plan.writer.bytes_in + plan.places.entry_bytes + longer
            async with together() as tasks:
                stream = PackStream(plan.writer, parts, tasks=tasks, size_bytes=size_bytes)
                yield stream
                stream.stop()
        finally:
            await foreign.close()
            await scratch.close()

    async def _parts(self, plan: Plan, *, foreign: Spool, scratch: Spool) -> Parts:
        """The entries of all objects, in order and some at a time."""
        places = plan.places
        await extract_foreign(
            self._store, self.policy, places, scratch=foreign, budget=self._budget
        )
        window_bytes = await _worked(partial(self._window_bytes, places), places)
        if window_bytes is not None:
            readers = self._readers(places, foreign)
            gathering = _Gathering(self, plan, readers, window_bytes=window_bytes)
            count = min(_WINDOW_BYTES_MAX, places.entry_bytes) // window_bytes
            return Parts(read=gathering.next_part, ahead=max(1, count))
        await self._gather(plan.form, places, foreign=foreign, scratch=scratch)
        await foreign.close()
        chunks = scratch.chunks()
        return Parts(read=partial(anext, chunks, None), ahead=1)

    def _window_bytes(self, places: Places) -> int | None:
        """The smallest windows in the pack's order that are read in ranges of some size."""
        for bytes_max in (_WINDOW_BYTES, _WINDOW_BYTES_MAX):
            if places.entry_bytes <= bytes_max:
                return bytes_max
            cut = self.windows(places, longer=0, bytes_max=bytes_max)
            reads = sum(1 for window in cut for _ in self.runs(window))
            if places.entry_bytes >= reads * _RANGE_BYTES_MIN:
                return bytes_max
        return None

    def windows(self, places: Places, *, longer: int, bytes_max: int) -> Iterator[list[Piece]]:
        """All entries in the pack's order, `longer` than they are stored, some at a time."""
        pieces = cut_pieces(
            places,
            range(len(places)),
            longer=longer,
            piece_bytes_max=self.policy.build_read_bytes_max,
        )
        return windows(pieces, bytes_max=bytes_max)

    def runs(self, window: Iterable[Piece]) -> Iterator[Run]:
        """The ranges to be read for these entries."""
        return join_runs(
            sorted(window, key=lambda piece: (piece.source, piece.start)),
            gap_bytes_max=self.policy.build_join_gap_bytes,
            run_bytes_max=self.policy.build_read_bytes_max,
        )

    def _readers(self, places: Places, foreign: Spool) -> list[ReadRange]:
        return [
            foreign.read
            if source.foreign
            else partial(stored_range, self._store, source.storage_key)
            for source in places.sources
        ]

    async def _gather(
        self, form: IdForm, places: Places, *, foreign: Spool, scratch: Spool
    ) -> None:
        """Put every entry at its place in the scratch."""
        longer = _longer(form)
        run_bytes_max = self.policy.build_read_bytes_max
        await scratch.allocate(places.entry_bytes + longer * len(places))
        readers = self._readers(places, foreign)
        order = await asyncio.to_thread(reading_order, places)
        pieces = cut_pieces(places, order, longer=longer, piece_bytes_max=run_bytes_max)
        gap = self.policy.build_join_gap_bytes
        runs = join_runs(pieces, gap_bytes_max=gap, run_bytes_max=run_bytes_max)

        async def work() -> None:
            for run in runs:
                data = await _read(readers[run.source], run)
                await scratch.put(
                    partial(written, run, data, prefixed=longer > 0), size_bytes=len(data)
                )

        async with together() as tasks:
            for _ in range(self.policy.build_reads_parallel):
                tasks.create_task(work())


class _Gathering:
    """Entries gathered in memory, a window at a time; several may be under way at once."""

    def __init__(
        self, builder: PackBuilder, plan: Plan, readers: list[ReadRange], *, window_bytes: int
    ) -> None:
        self._builder = builder
        self._places = plan.places
        self._readers = readers
        self._longer = _longer(plan.form)
        self._cut = builder.windows(plan.places, longer=self._longer, bytes_max=window_bytes)
        self._cutting = asyncio.Lock()
        self._reads = asyncio.Semaphore(builder.policy.build_reads_parallel)

    async def next_part(self) -> bytes | None:
        """The entries of the next window, None behind the last. Who asks first gets the first."""
        async with self._cutting:
            runs = await _worked(self._next_runs, self._places)
        if not runs:
            return None
        data = [b""] * len(runs)

        async def read(at: int, run: Run) -> None:
            async with self._reads:
                data[at] = await _read(self._readers[run.source], run)

        if len(runs) == 1:
            await read(0, runs[0])
        else:
            async with together() as tasks:
                for at, run in enumerate(runs):
                    tasks.create_task(read(at, run))
        return await _worked(partial(spliced, runs, data, prefixed=self._longer > 0), self._places)

    def _next_runs(self) -> list[Run]:
        return list(self._builder.runs(next(self._cut, ())))


def _longer(form: IdForm) -> int:
    """How much longer an entry is than a stored one."""
    return len(PREFIX) if form is IdForm.PREFIXED else 0


async def _worked(work: Callable[[], T], places: Places) -> T:
    """Do this, in a thread when these places make much work of it."""
    little = len(places) <= _INLINE_PLACES and places.entry_bytes <= _INLINE_BYTES
    return await off_loop(work, much=not little)


async def _read(read: ReadRange, run: Run) -> bytes:
    data = await read(run.start, run.stop)
    if len(data) != run.stop - run.start:
        raise Corrupt("A segment is shorter than its index says.", start=run.start)
    return data
