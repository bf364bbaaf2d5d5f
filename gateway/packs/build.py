"""Copies a pack's objects out of their segments, in bounded memory and few reads.

A pack's order (by path) has nothing to do with that of its segments (as pushed), and a read a piece
would be a request for every object. So the segments are read from front to back, neighbouring
entries as one range, several ranges at once; each entry is put at its place in a scratch spool,
known beforehand because every length is; then the scratch is the pack's end, in order. An entry is
copied as it is; only its head is looked at.
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
from gateway.packs.spool import Spool, SpoolBudget
from gateway.packs.store_calls import first_failure, stored_range
from gateway.wire.ids import PREFIX, IdForm
from leases.errors import Corrupt
from leases.ports import BlobStore

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
            await self._gather(plan.form, plan.places, foreign=foreign, scratch=scratch)
            await foreign.close()
            async for chunk in scratch.chunks():
                await plan.writer.write(chunk)
        except BaseExceptionGroup as group:
            raise first_failure(group) from group
        finally:
            await foreign.close()
            await scratch.close()

    async def _gather(
        self, form: IdForm, places: Places, *, foreign: Spool, scratch: Spool
    ) -> None:
        """Put every entry at its place in the scratch."""
        longer = len(PREFIX) if form is IdForm.PREFIXED else 0
        run_bytes_max = self._policy.build_read_bytes_max
        await scratch.allocate(places.entry_bytes + longer * len(places))
        readers = [
            foreign.read
            if source.foreign
            else partial(stored_range, self._store, source.storage_key)
            for source in places.sources
        ]
        order = await asyncio.to_thread(reading_order, places)
        pieces = cut_pieces(places, order, longer=longer, piece_bytes_max=run_bytes_max)
        gap = self._policy.build_join_gap_bytes
        runs = join_runs(pieces, gap_bytes_max=gap, run_bytes_max=run_bytes_max)

        async def work() -> None:
            for run in runs:
                data = await readers[run.source](run.start, run.stop)
                if len(data) != run.stop - run.start:
                    raise Corrupt("A segment is shorter than its index says.", start=run.start)
                await scratch.put(
                    partial(_written, run, data, prefixed=longer > 0), size_bytes=len(data)
                )

        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._policy.build_reads_parallel):
                tasks.create_task(work())


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
