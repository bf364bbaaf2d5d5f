"""One walk over a pack's bytes: every id is recomputed, whatever the pack says of itself.

The headers are read one by one, so that none can ask for memory. Objects, which are most of a pack,
are taken straight from the bytes where their entries look as the gateway writes them; from the
first that does not, they are decoded like everything else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Protocol

import msgpack

from gateway.client.commits import Commits
from gateway.client.errors import BadPack, TooBig
from gateway.client.manifests import Snapshots
from gateway.client.objects import Places, UsualObjects, check_object_size, wrong_object
from gateway.client.plain import PlainPack

_READ_BYTES = 64 * 1024  # A larger buffer would be fresh pages for the kernel to clear.
_VERSIONS = (1, 2)  # Whole manifests alone; or changes on earlier ones as well.
_KEYS = {"version", "commits", "snapshots", "objects"}
_ITEMS_MAX = 16 * 1024**2


class Bounds(Protocol):
    """What a pack may ask of this machine."""

    @property
    def unpacked_bytes_max(self) -> int: ...
    @property
    def object_bytes_max(self) -> int: ...
    @property
    def record_bytes_max(self) -> int: ...


class PackReader:
    """Fills in what a pack holds: records by their bare ids, and for an object its place."""

    def __init__(self, plain: PlainPack, bounds: Bounds) -> None:
        self._plain, self._bounds = plain, bounds
        self.commits = Commits()
        self.snapshots = Snapshots()
        self.objects: Places = {}
        self._start = 0
        self._decode_from(0, b"")

    def read(self) -> None:
        """The whole map; keys that nobody here knows are passed over."""
        keys = set()
        try:
            for _ in range(self._unpacker.read_map_header()):
                key = self._unpacker.unpack()
                self._part(key)
                keys.add(key if isinstance(key, str) else None)
            if self._tell() != self._plain.bytes_read or self._plain.read(1):
                raise BadPack("There is something behind the pack's end.")
        except msgpack.OutOfData:
            raise BadPack("The pack ends too early.") from None
        except msgpack.BufferFull:
            raise TooBig("An entry of the pack is too large.") from None
        except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
            raise BadPack("The pack is not a msgpack map.") from error
        if not keys >= _KEYS:
            raise BadPack("This is a msgpack map, but not a pack.")

    # Decoding. -----------------------------------------------------------------------------------

    def _decode_from(self, start: int, first: bytes) -> None:
        """Decode these bytes, which stand here in the pack, and all that follows them."""
        bounds = self._bounds
        self._start = start
        self._tape = _Tape(self._plain, first, start=start, bytes_max=bounds.record_bytes_max)
        self._unpacker: Any = msgpack.Unpacker(
            self._tape,
            read_size=_READ_BYTES,
            max_buffer_size=max(bounds.object_bytes_max, bounds.record_bytes_max) + 64,
            # An array's header alone makes the decoder allocate for all its items.
            max_array_len=_ITEMS_MAX,
            max_map_len=_ITEMS_MAX,
            strict_map_key=False,
        )

    def _tell(self) -> int:
        return self._start + int(self._unpacker.tell())

    def _part(self, key: object) -> None:
        match key:
            case "version":
                version = self._unpacker.unpack()
                if version not in _VERSIONS:
                    told = " or ".join(str(one) for one in _VERSIONS)
                    raise BadPack(f"This pack's version is {version!r:.20}, not {told}.")
            case "commits":
                self._records(self.commits.add)
            case "snapshots":
                self._records(lambda record, _raw: self.snapshots.add(record))
                self.snapshots.verify(
                    manifest_bytes_max=self._bounds.record_bytes_max,
                    bytes_max=self._bounds.unpacked_bytes_max,
                )
            case "objects":
                self._objects(self._unpacker.read_array_header())
            case _:
                self._unpacker.skip()

    def _records(self, add: Callable[[object, bytes], None]) -> None:
        """The entries of the array: each decoded, and the bytes that it was decoded from."""
        tape, unpack, tell = self._tape, self._unpacker.unpack, self._unpacker.tell
        count = self._unpacker.read_array_header()
        tape.keep_from(self._tell())
        for _ in range(count):
            record = unpack()
            add(record, tape.cut(self._start + tell()))
        tape.keep_from(None)

    # Objects. ------------------------------------------------------------------------------------

    def _objects(self, count: int) -> None:
        """The entries of the array, taken from the bytes themselves as long as they look usual."""
        at = self._tell()
        data = self._unpacker.read_bytes(self._plain.bytes_read - at)
        walk = UsualObjects(self._plain, data, start=at, bytes_max=self._bounds.object_bytes_max)
        taken = walk.take(count, self.objects)
        self._decode_from(walk.position, walk.rest)
        for _ in range(count - taken):
            self._object()

    def _object(self) -> None:
        object_id: object = None
        place: tuple[int, int] | None = None
        digest = ""
        for _ in range(self._unpacker.read_map_header()):
            match self._unpacker.unpack():
                case "object_id":
                    object_id = self._unpacker.unpack()
                case "content":
                    content = self._unpacker.unpack()
                    if not isinstance(content, bytes):
                        raise BadPack("An object's content is not bytes.")
                    check_object_size(len(content), self._bounds.object_bytes_max)
                    place = (self._tell() - len(content), len(content))
                    digest = hashlib.sha256(content).hexdigest()
                case _:
                    self._unpacker.skip()
        if not isinstance(object_id, str) or place is None:
            raise BadPack("An object of the pack has no id or no content.")
        if object_id.removeprefix("sha256:") != digest:
            raise wrong_object(object_id)
        self.objects[digest] = place


class _Tape:
    """Reads for a decoder, and keeps what it has read of the record that it is at.

    The bytes that were read last are kept always: a decoder asks for more only when it has used up
    what it has, so whatever comes next begins in them or behind them.
    """

    def __init__(self, plain: PlainPack, first: bytes, *, start: int, bytes_max: int) -> None:
        self._plain, self._first, self._bytes_max = plain, first, bytes_max
        self._data, self._more = first, list[bytes]()
        self._start, self._end = start, start + len(first)
        self._record: int | None = None

    def read(self, count: int) -> bytes:
        """The next bytes, as the decoder reads files.

        Errors: TooBig when the record is larger than one may be.
        """
        if self._first:
            piece, self._first = self._first[:count], self._first[count:]
            return piece
        piece = self._plain.read(count)
        if self._record is None:
            self._data, self._start = piece, self._end
        else:
            self._check(self._end + 1)  # It wants more than there is.
            self._more.append(piece)
        self._end += len(piece)
        return piece

    def keep_from(self, place: int | None) -> None:
        """Keep what is read from this place of the pack on, which the decoder has come to."""
        self._record = place

    def cut(self, end: int) -> bytes:
        """The record, which ends here; the next one begins here.

        Errors: TooBig.
        """
        assert self._record is not None, "`keep_from` said where it begins"
        self._check(end)
        begin = self._record - self._start
        if self._more and end > self._start + len(self._data):
            self._data = b"".join([self._data[begin:], *self._more])
            self._more.clear()
            self._start, begin = self._record, 0
        self._record = end
        return self._data[begin : end - self._start]

    def _check(self, end: int) -> None:
        assert self._record is not None, "only records are kept"
        if end - self._record > self._bytes_max:
            raise TooBig("A record of the pack is too large.", bytes_max=self._bytes_max)
