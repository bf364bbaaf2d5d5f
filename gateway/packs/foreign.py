"""Objects in blobs that other code wrote: found by decoding, checked by their hash, never trusted.

What is found goes into a scratch spool as entries of our own form, so that the build itself knows
one form only. Such a blob is a range that holds an entry, or the raw content itself; or, without an
offset, a whole pack (raw or one zstd stream) that has to be read through.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import IO, Any

import msgpack
import msgspec
import zstandard

from gateway.errors import IncompleteRepo
from gateway.packs.places import WHOLE_BLOB, Place, Places, Source
from gateway.packs.policy import PackPolicy
from gateway.packs.splice import entry_head
from gateway.packs.spool import Spool, SpoolBudget
from gateway.packs.store_calls import store_call, stored_range
from gateway.portions import portions
from gateway.together import together
from gateway.wire.ids import PREFIX
from leases.errors import Corrupt
from leases.ports import BlobStore, HeadsBlobs

_RANGES_PER_BATCH = 64
_UNPACK_ERRORS = (
    ValueError,
    msgpack.exceptions.UnpackException,
    zstandard.ZstdError,
    RecursionError,
)


class _Entry(msgspec.Struct):
    content: bytes


_ENTRY = msgspec.msgpack.Decoder(_Entry)


async def extract_foreign(
    store: BlobStore, policy: PackPolicy, places: Places, *, scratch: Spool, budget: SpoolBudget
) -> None:
    """Move every foreign object into the scratch spool, and say so in the places.

    Errors: IncompleteRepo when a blob is missing or lacks the object; Corrupt when content does not
            match its id; StoreUnavailable; SpoolFull.
    """
    if not any(source.foreign for source in places.sources):
        return
    foreign = [place for place in places if places.sources[place.source].foreign]
    reading = _Extraction(store, policy, scratch=scratch, budget=budget)
    ranges = [place for place in foreign if place.offset != WHOLE_BLOB]
    for batch in portions(
        ranges,
        weight=lambda place: place.length,
        weight_max=4 * policy.build_read_bytes_max,
        count_max=_RANGES_PER_BATCH,
    ):
        await reading.ranges(batch, places.sources)
    whole: dict[int, list[str]] = {}
    for place in foreign:
        if place.offset == WHOLE_BLOB:
            whole.setdefault(place.source, []).append(place.object_id)
    for source, object_ids in whole.items():
        await reading.whole_blob(places.sources[source].storage_key, object_ids)
    number = places.source("", foreign=True)
    for at, object_id in enumerate(places.object_ids):
        if object_id in reading.found:
            places.move(at, Place(object_id, number, *reading.found[object_id]))


def content_of(data: bytes, object_id: str) -> bytes:
    """The object's content in a range of a foreign blob.

    Errors: Corrupt when the range holds neither the content nor an entry of it.
    """
    if _matches(data, object_id):
        return data
    try:
        content = _ENTRY.decode(data).content
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Corrupt("A stored object cannot be read.", object_id=object_id) from error
    if not _matches(content, object_id):
        raise Corrupt("A stored object does not match its id.", object_id=object_id)
    return content


class _Extraction:
    def __init__(
        self, store: BlobStore, policy: PackPolicy, *, scratch: Spool, budget: SpoolBudget
    ) -> None:
        self._store = store
        self._policy = policy
        self._scratch = scratch
        self._budget = budget
        self.found: dict[str, tuple[int, int]] = {}

    async def ranges(self, batch: Sequence[Place], sources: Sequence[Source]) -> None:
        """Read some entries at once, check and move them."""
        data: list[bytes] = [b""] * len(batch)

        async def read(at: int, place: Place) -> None:
            key = sources[place.source].storage_key
            data[at] = await stored_range(
                self._store, key, place.offset, place.offset + place.length
            )

        async with together() as tasks:
            for at, place in enumerate(batch):
                self._check_size(place.object_id, place.length)
                tasks.create_task(read(at, place))
        contents = await self._scratch.run(
            lambda: [content_of(one, p.object_id) for one, p in zip(data, batch, strict=True)]
        )
        for place, content in zip(batch, contents, strict=True):
            await self._move(place.object_id, content)

    async def whole_blob(self, key: str, object_ids: Sequence[str]) -> None:
        """Read one blob through, and move the objects asked for."""
        blob = Spool(self._policy, self._budget)
        try:
            await self._download(key, blob)
            wanted = set(object_ids)
            with blob.file() as file:
                entries = _entries(file, self._policy.foreign_object_bytes_max, wanted)
                while (entry := await blob.run(lambda: next(entries, None))) is not None:
                    await self._move(*entry)
                    wanted.discard(entry[0])
        except _UNPACK_ERRORS as error:
            raise Corrupt("A stored pack cannot be read.", storage_key=key) from error
        finally:
            await blob.close()
        if wanted:
            raise IncompleteRepo(storage_key=key, missing=sorted(wanted))

    async def _download(self, key: str, blob: Spool) -> None:
        """By ranges where the store can tell a blob's size, at once where it cannot."""
        if not isinstance(self._store, HeadsBlobs):
            data = await stored_range(self._store, key, None, None)
            await blob.append(lambda: data, work_bytes=len(data))
            return
        with store_call("head"):
            info = await self._store.head(key)
        if info is None:
            raise IncompleteRepo(storage_key=key)
        if info.size_bytes > self._policy.foreign_blob_bytes_max:
            raise Corrupt("A stored pack is over the limit.", storage_key=key)
        step = self._policy.build_read_bytes_max
        for start in range(0, info.size_bytes, step):
            data = await stored_range(self._store, key, start, min(start + step, info.size_bytes))
            await blob.append(partial(bytes, data), work_bytes=len(data))

    async def _move(self, object_id: str, content: bytes) -> None:
        head = entry_head(object_id, len(content))
        self.found[object_id] = (self._scratch.size_bytes, len(head) + len(content))
        await self._scratch.append(lambda: head + content, work_bytes=len(content))

    def _check_size(self, object_id: str, size_bytes: int) -> None:
        if size_bytes > self._policy.foreign_object_bytes_max:
            raise Corrupt("A stored object is over the limit.", object_id=object_id)


def _entries(
    blob: IO[bytes], object_bytes_max: int, wanted: set[str]
) -> Iterator[tuple[str, bytes]]:
    """The wanted objects of a foreign pack, one in memory at a time."""
    blob.seek(0)
    start = blob.read(len(zstandard.FRAME_HEADER))
    blob.seek(0)
    stream: Any = blob
    if start == zstandard.FRAME_HEADER:
        stream = zstandard.ZstdDecompressor().stream_reader(
            blob, read_across_frames=True, closefd=False
        )
    unpacker = msgpack.Unpacker(
        stream, raw=False, strict_map_key=False, max_buffer_size=object_bytes_max + 65_536
    )
    for _ in range(unpacker.read_map_header()):
        if unpacker.unpack() != "objects":
            unpacker.skip()
            continue
        for _ in range(unpacker.read_array_header()):
            yield from _wanted_entry(unpacker.unpack(), wanted)


def _wanted_entry(entry: Any, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
    if not isinstance(entry, Mapping):
        raise ValueError("an object is no map")  # noqa: TRY004  told apart from bugs by its kind
    object_id = str(entry.get("object_id", "")).removeprefix(PREFIX)
    content = entry.get("content")
    if object_id in wanted and isinstance(content, bytes):
        if not _matches(content, object_id):
            raise Corrupt("A stored object does not match its id.", object_id=object_id)
        yield object_id, content


def _matches(content: bytes, object_id: str) -> bool:
    return hashlib.sha256(content).hexdigest() == object_id
