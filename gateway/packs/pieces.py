"""Which bytes of the segments a pack is made of, and where in it they stand: arithmetic on places.

Neighbouring entries are read as one range: pieces are sorted by where they lie, joined into runs,
and sorted back by their place in the pack once they are read.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import itemgetter
from typing import NamedTuple

from gateway.packs.places import Places
from gateway.packs.splice import ENTRY_ID_BYTES, check_entry, id_head
from gateway.portions import portions
from gateway.wire.ids import PREFIX
from leases.errors import Corrupt


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
    return portions(pieces, weight=lambda piece: piece.stop - piece.start, weight_max=bytes_max)


def written(run: Run, data: bytes, *, prefixed: bool) -> Iterator[tuple[int, bytes | memoryview]]:
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


def spliced(runs: Sequence[Run], data: Sequence[bytes], *, prefixed: bool) -> bytes:
    """The pieces of these runs in the order of the pack, as one.

    Errors: as `written`.
    """
    placed = [
        part
        for run, read in zip(runs, data, strict=True)
        for part in written(run, read, prefixed=prefixed)
    ]
    placed.sort(key=itemgetter(0))
    return b"".join(part for _, part in placed)
