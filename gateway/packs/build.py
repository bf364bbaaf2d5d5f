"""Copies a pack's objects out of their segments, in bounded memory and few reads.

A pack's order (by path) has nothing to do with that of its segments (as pushed), and a read a piece
would be a request for every object. So neighbouring entries are read as one range, several ranges
at once, and each is put at its place, known beforehand because every length is. Where the entries
of some MiB of the pack lie close enough together, they are gathered in memory; otherwise the
segments are read from front to back into a scratch spool, which then is the pack's end. An entry
is copied as it is; only its head is looked at.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import NamedTuple

from gateway.packs.foreign import extract_foreign
from gateway.packs.places import Places
from gateway.packs.plan import Plan
from gateway.packs.policy import PackPolicy
from gateway.packs.splice import ENTRY_ID_BYTES, check_entry, id_head
from gateway.packs.spool import PackWriter, Spool, SpoolBudget
from gateway.packs.store_calls import first_failure, stored_range
from gateway.wire.ids import PREFIX, IdForm
from leases.errors import Corrupt
from leases.ports import BlobStore

# Objects of one pack lie in many segments, and in each in another order than in the pack. As long
# as the entries of this many bytes make ranges of some size, they are gathered in memory; the
# other way, through a file, costs two more passes over the disk. Both numbers: benchmark `packs`.
_WINDOW_BYTES = 8 * 1024 * 1024
_RANGE_BYTES_MIN = 64 * 1024
_WRITTEN_BYTES = 1024 * 1024

ReadRange = Callable[[int, int], Awaitable[bytes]]


class Piece(NamedTuple):
    """A piece `[start, stop)` of one stored entry, and its place in the scratch; `object_id` is set
    on an entry's first piece.
    """

    source: int
    start: int
    stop: int
    position: int
    object_id: str | None
    entry_bytes: int


@dataclass(slots=True)
class Run:
    """Neighbouring pieces of one source, read as one range."""

    source: int
    start: int
    stop: int
    pieces: list[Piece] = field(default_factory=list)


def reading_order(places: Places) -> list[int]:
    """The places' indexes, source by source and front to back."""
    numbers, offsets = places.numbers, places.offsets
    # One number as the key: a tuple for each object would be the most memory of a build.
    return sorted(range(len(places)), key=lambda at: numbers[at] << 48 | offsets[at])


def cut_pieces(
    places: Places, order: Iterable[int], *, longer: int, piece_bytes_max: int
) -> Iterator[Piece]:
    """Every entry as pieces, in this order; written entries are `longer` than stored ones, in their
    first piece.
    """
    positions = array("q", accumulate((one + longer for one in places.lengths), initial=0))
    for at in order:
        place, position = places[at], positions[at]
        end = place.offset + place.length
        for start in range(place.offset, end, piece_bytes_max):
            first = start == place.offset
            stop = min(start + piece_bytes_max, end)
            object_id = place.object_id if first else None
            yield Piece(place.source, start, stop, position, object_id, place.length)
            position += stop - start + (longer if first else 0)


def join_runs(pieces: Iterable[Piece], *, gap_bytes_max: int, run_bytes_max: int) -> Iterator[Run]:
    """The ranges to read; a small gap is cheaper to read than another request."""
    run: Run | None = None
    for piece in pieces:
        joins = (
            run is not None
            and run.source == piece.source
            and piece.start - run.stop <= gap_bytes_max
            and piece.stop - run.start <= run_bytes_max
        )
        if run is None or not joins:
            if run is not None:
                yield run
            run = Run(piece.source, piece.start, piece.stop)
        run.stop = max(run.stop, piece.stop)
        run.pieces.append(piece)
    if run is not None:
        yield run


def windows(pieces: Iterable[Piece], *, bytes_max: int) -> Iterator[list[Piece]]:
    """Pieces in the order of the pack, as many at a time as fit; at least one."""
    window: list[Piece] = []
    held = 0
    for piece in pieces:
        length = piece.stop - piece.start
        if window and held + length > bytes_max:
            yield window
            window, held = [], 0
        window.append(piece)
        held += length
    if window:
        yield window


class PackBuilder:
    """Fills planned packs with their objects."""

    def __init__(self, store: BlobStore, policy: PackPolicy, budget: SpoolBudget) -> None:
        self._store = store
        self._policy = policy
        self._budget = budget

    async def fill(self, plan: Plan) -> None:
        """Write every object of the plan into its writer.

        Errors: IncompleteRepo when a blob is missing; Corrupt when it does not hold what the index
                says; StoreUnavailable; SpoolFull.
        """
        foreign, scratch = (Spool(self._policy, self._budget) for _ in range(2))
        try:
            await extract_foreign(
                self._store, self._policy, plan.places, scratch=foreign, budget=self._budget
            )
            if await asyncio.to_thread(self._reads_well, plan.places):
                await self._gather_in_memory(
                    plan.form, plan.places, foreign=foreign, writer=plan.writer
                )
                return
            await self._gather(plan.form, plan.places, foreign=foreign, scratch=scratch)
            await foreign.close()
            async for chunk in scratch.chunks():
                await plan.writer.write(chunk)
        except BaseExceptionGroup as group:
            raise first_failure(group) from group
        finally:
            await foreign.close()
            await scratch.close()

    def _reads_well(self, places: Places) -> bool:
        """Whether windows in the pack's order are read in ranges of some size."""
        reads = sum(1 for window in self._windows(places, longer=0) for _ in self._runs(window))
        return places.entry_bytes >= reads * _RANGE_BYTES_MIN

    def _windows(self, places: Places, *, longer: int) -> Iterator[list[Piece]]:
        pieces = cut_pieces(
            places,
            range(len(places)),
            longer=longer,
            piece_bytes_max=self._policy.build_read_bytes_max,
        )
        return windows(pieces, bytes_max=_WINDOW_BYTES)

    def _runs(self, window: Iterable[Piece]) -> Iterator[Run]:
        return join_runs(
            sorted(window, key=lambda piece: (piece.source, piece.start)),
            gap_bytes_max=self._policy.build_join_gap_bytes,
            run_bytes_max=self._policy.build_read_bytes_max,
        )

    async def _gather_in_memory(
        self, form: IdForm, places: Places, *, foreign: Spool, writer: PackWriter
    ) -> None:
        """Write every entry, a window at a time."""
        longer = len(PREFIX) if form is IdForm.PREFIXED else 0
        readers = self._readers(places, foreign)
        for window in self._windows(places, longer=longer):
            start = window[0].position
            heads = sum(piece.object_id is not None for piece in window)
            size_bytes = sum(piece.stop - piece.start for piece in window) + longer * heads
            gathered = memoryview(bytearray(size_bytes))
            runs = self._runs(window)

            def put(
                run: Run, data: bytes, start: int = start, gathered: memoryview = gathered
            ) -> None:
                for position, part in _written(run, data, prefixed=longer > 0):
                    gathered[position - start : position - start + len(part)] = part

            async def work(runs: Iterator[Run] = runs, put: Callable[..., None] = put) -> None:
                for run in runs:
                    put(run, await _read(readers[run.source], run))

            async with asyncio.TaskGroup() as tasks:
                for _ in range(self._policy.build_reads_parallel):
                    tasks.create_task(work())
            for at in range(0, size_bytes, _WRITTEN_BYTES):
                await writer.write(gathered[at : at + _WRITTEN_BYTES])

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
        longer = len(PREFIX) if form is IdForm.PREFIXED else 0
        run_bytes_max = self._policy.build_read_bytes_max
        await scratch.allocate(places.entry_bytes + longer * len(places))
        readers = self._readers(places, foreign)
        order = await asyncio.to_thread(reading_order, places)
        pieces = cut_pieces(places, order, longer=longer, piece_bytes_max=run_bytes_max)
        gap = self._policy.build_join_gap_bytes
        runs = join_runs(pieces, gap_bytes_max=gap, run_bytes_max=run_bytes_max)

        async def work() -> None:
            for run in runs:
                data = await _read(readers[run.source], run)
                await scratch.put(
                    partial(_written, run, data, prefixed=longer > 0), size_bytes=len(data)
                )

        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._policy.build_reads_parallel):
                tasks.create_task(work())


async def _read(read: ReadRange, run: Run) -> bytes:
    data = await read(run.start, run.stop)
    if len(data) != run.stop - run.start:
        raise Corrupt("A segment is shorter than its index says.", start=run.start)
    return data


def _written(run: Run, data: bytes, *, prefixed: bool) -> Iterator[tuple[int, bytes | memoryview]]:
    """Each piece of a run as it is written, with its place.

    Errors: Corrupt when an entry does not begin as the index says.
    """
    view = memoryview(data)
    for piece in run.pieces:
        part = view[piece.start - run.start : piece.stop - run.start]
        if piece.object_id is None:
            yield piece.position, part
            continue
        try:
            check_entry(part, piece.object_id, piece.entry_bytes)
        except ValueError as error:
            message = "A segment does not hold this object."
            raise Corrupt(message, object_id=piece.object_id) from error
        if prefixed:
            head = id_head(PREFIX + piece.object_id)
            yield piece.position, head
            yield piece.position + len(head), part[ENTRY_ID_BYTES:]
        else:
            yield piece.position, part
