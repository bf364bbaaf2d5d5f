"""Where the objects of a pack are stored: one place each."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sqlalchemy import text

from gateway.errors import MISSING_SHOWN_MAX, IncompleteRepo
from gateway.packs.commit_rows import rows_of
from gateway.packs.transaction import Reader

_OBJECTS_PER_BATCH = 10_000

# An entry of a live segment first, then what other code wrote, where it says at which offset.
_PLACES = text(
    """
SELECT DISTINCT ON (i.entity_id) i.entity_id, i.byte_offset, i.byte_length,
       COALESCE(s.storage_key, 'segments/' || i.mpack_id) AS storage_key,
       COALESCE(s.codec, '') = 'raw' AND i.byte_offset + i.byte_length IS NOT NULL AS own
  FROM unnest(CAST(:ids AS text[])) AS one (entity_id)
 CROSS JOIN LATERAL (
         SELECT * FROM mpack_index
          WHERE entity_type = 'object' AND entity_id = one.entity_id OFFSET 0) i
  LEFT JOIN LATERAL (SELECT * FROM segments WHERE mpack_id = i.mpack_id LIMIT 1) s ON true
 WHERE s.mpack_id IS NULL OR s.state = 'live'
 ORDER BY i.entity_id, s.mpack_id IS NULL, i.byte_offset IS NULL, i.mpack_id"""
)


class Place(NamedTuple):
    """One object's place: bytes `[offset, offset + length)` of a source."""

    object_id: str
    source: int
    offset: int
    length: int


WHOLE_BLOB = -1  # As an offset: the object is somewhere in the blob, which has to be decoded.


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A blob that holds objects; a foreign one was written by other code and is not trusted."""

    storage_key: str
    foreign: bool


@dataclass(slots=True)
class Places:
    """The places of a pack's objects, in the pack's order, and the blobs they lie in.

    Kept by columns: there may be hundreds of thousands, and a tuple for each is 200 bytes.
    """

    sources: list[Source] = field(default_factory=list)
    object_ids: list[str] = field(default_factory=list)
    numbers: array[int] = field(default_factory=lambda: array("l"))
    offsets: array[int] = field(default_factory=lambda: array("q"))
    lengths: array[int] = field(default_factory=lambda: array("q"))
    _known: dict[tuple[str, bool], int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.object_ids)

    def __getitem__(self, at: int) -> Place:
        return Place(self.object_ids[at], self.numbers[at], self.offsets[at], self.lengths[at])

    def __iter__(self) -> Iterator[Place]:
        return (self[at] for at in range(len(self)))

    @property
    def entry_bytes(self) -> int:
        """The bytes of all entries whose length is known."""
        return sum(self.lengths)

    def move(self, at: int, place: Place) -> None:
        """Say that an object's entry lies elsewhere by now."""
        self.numbers[at], self.offsets[at], self.lengths[at] = place[1:]

    def source(self, storage_key: str, *, foreign: bool) -> int:
        """The number of a source, which is added when it is new."""
        number = self._known.setdefault((storage_key, foreign), len(self.sources))
        if number == len(self.sources):
            self.sources.append(Source(storage_key=storage_key, foreign=foreign))
        return number

    def add(self, place: Place) -> None:
        """Take the next object's place."""
        self.object_ids.append(place.object_id)
        self.numbers.append(place.source)
        self.offsets.append(place.offset)
        self.lengths.append(place.length)


async def find_places(reader: Reader, repo_id: str, object_ids: Sequence[str]) -> Places:
    """One place for each of these objects, in the given order.

    Errors: IncompleteRepo with the ids of those that are stored nowhere.
    """
    places = Places()
    missing: list[str] = []
    for start in range(0, len(object_ids), _OBJECTS_PER_BATCH):
        batch = object_ids[start : start + _OBJECTS_PER_BATCH]
        rows = {row[0]: row for row in await rows_of(reader, _PLACES, ids=batch)}
        for object_id in batch:
            if object_id in rows:
                places.add(_place(places, object_id, rows[object_id]))
            else:
                missing.append(object_id)
    if missing:
        raise IncompleteRepo(repo_id=repo_id, missing=missing[:MISSING_SHOWN_MAX])
    return places


def _place(places: Places, object_id: str, row: Any) -> Place:
    # The id is the caller's own text: the row's would be a second copy of each.
    _, offset, length, storage_key, own = row
    source = places.source(storage_key, foreign=not own)
    if offset is None or length is None:
        return Place(object_id, source, WHOLE_BLOB, 0)
    return Place(object_id, source, offset, length)
