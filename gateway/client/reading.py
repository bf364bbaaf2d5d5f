"""One walk over a pack's bytes: every id is recomputed, whatever the pack says of itself.

The headers are read one by one, so that none can ask for memory. Objects, which are most of a pack,
are taken straight from the bytes where their entries look as the gateway writes them; from the
first that does not, they are decoded like everything else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

import msgpack
import msgspec

from gateway.client.errors import BadPack, TooBig
from gateway.client.manifests import Record, Snapshots
from gateway.client.plain import PlainPack
from gateway.wire.ids import is_commit_id, is_snapshot_id

_READ_BYTES = 1024 * 1024
_VERSIONS = (1, 2)  # Whole manifests alone; or changes on earlier ones as well.
_KEYS = {"version", "commits", "snapshots", "objects"}
_ITEMS_MAX = 16 * 1024**2

# An object's entry as the gateway writes it, up to its content, for either form of the id.
_BARE = b"\x82\xa9object_id\xd9\x40"
_PREFIXED = b"\x82\xa9object_id\xd9\x47sha256:"
_ID_DIGITS = 64
_CONTENT = b"\xa7content"
_LENGTH_BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4}  # bin 8, bin 16, bin 32
_HEAD_BYTES_MAX = len(_PREFIXED) + _ID_DIGITS + len(_CONTENT) + 1 + 4


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
        self.commits: dict[str, Record] = {}
        self.snapshots = Snapshots()
        self.objects: dict[str, tuple[int, int]] = {}
        self._start = 0
        self._unpacker = self._decoder(b"")

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
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise BadPack("The pack is not a msgpack map.") from error
        if not keys >= _KEYS:
            raise BadPack("This is a msgpack map, but not a pack.")

    # Decoding. -----------------------------------------------------------------------------------

    def _decoder(self, first: bytes) -> Any:
        """A decoder of these bytes and all that follows them."""
        bounds = self._bounds
        return msgpack.Unpacker(
            _Joined(first, self._plain),
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
                self._records(self._add_commit)
            case "snapshots":
                self._records(self._add_snapshot)
                self.snapshots.verify(
                    manifest_bytes_max=self._bounds.record_bytes_max,
                    bytes_max=self._bounds.unpacked_bytes_max,
                )
            case "objects":
                self._objects(self._unpacker.read_array_header())
            case _:
                self._unpacker.skip()

    def _records(self, add: Callable[[bytes], None]) -> None:
        for _ in range(self._unpacker.read_array_header()):
            start = self._tell()
            self._unpacker.skip()
            length = self._tell() - start
            if length > self._bounds.record_bytes_max:
                raise TooBig("A record of the pack is too large.", size_bytes=length)
            add(self._plain.read_back(start, length))

    # Objects. ------------------------------------------------------------------------------------

    def _objects(self, count: int) -> None:
        """The entries of the array, taken from the bytes themselves as long as they look usual."""
        at = self._tell()
        data = self._unpacker.read_bytes(self._plain.bytes_read - at)
        walk = _UsualObjects(self._plain, data, start=at, bytes_max=self._bounds.object_bytes_max)
        taken = walk.take(count, self.objects)
        self._start, rest = walk.position, walk.rest
        self._unpacker = self._decoder(rest)
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
                    _check_size(len(content), self._bounds.object_bytes_max)
                    place = (self._tell() - len(content), len(content))
                    digest = hashlib.sha256(content).hexdigest()
                case _:
                    self._unpacker.skip()
        if not isinstance(object_id, str) or place is None:
            raise BadPack("An object of the pack has no id or no content.")
        if object_id.removeprefix("sha256:") != digest:
            _wrong("object", object_id)
        self.objects[digest] = place

    # Records. ------------------------------------------------------------------------------------

    def _add_snapshot(self, raw: bytes) -> None:
        record: Record = _decode(_snapshot_record, raw, "snapshot")
        snapshot_id = record["snapshot_id"].removeprefix("sha256:")
        if "base_snapshot_id" in record:
            base_id = record["base_snapshot_id"].removeprefix("sha256:")
            self.snapshots.add_delta(snapshot_id, base_id, record)
            return
        if not _is_manifest_of(snapshot_id, record["manifest"]):
            _wrong("snapshot", snapshot_id)
        self.snapshots.add_whole(snapshot_id, record)

    def _add_commit(self, raw: bytes) -> None:
        form = _decode(_commit_decoder.decode, raw, "commit")
        commit_id = form.commit_id.removeprefix("sha256:")
        parents = [p for p in (form.parent_commit_id, form.parent2_commit_id) if p]
        if not is_commit_id(
            commit_id,
            parent_ids=parents,
            snapshot_id=form.snapshot_id,
            message=form.message,
            committed_at=form.committed_at,
        ):
            _wrong("commit", commit_id)
        self.commits[commit_id] = _decode(_record_decoder.decode, raw, "commit")


class _Joined:
    """Some bytes, and behind them the rest of a pack, as the decoder reads files."""

    def __init__(self, first: bytes, plain: PlainPack) -> None:
        self._first, self._plain = first, plain

    def read(self, count: int) -> bytes:
        if self._first:
            data, self._first = self._first[:count], self._first[count:]
            return data
        return self._plain.read(count)


class _UsualObjects:
    """Takes objects from a pack's bytes for as long as each entry is the map that the gateway
    writes: `object_id` (bare or prefixed), then `content`, and nothing else.
    """

    def __init__(self, plain: PlainPack, data: bytes, *, start: int, bytes_max: int) -> None:
        self._plain, self._data, self._bytes_max = plain, data, bytes_max
        self._start, self._at = start, 0

    @property
    def position(self) -> int:
        """Where the first byte that was not taken stands in the pack."""
        return self._start + self._at

    @property
    def rest(self) -> bytes:
        """What was read and not taken."""
        return self._data[self._at :]

    def take(self, count: int, objects: dict[str, tuple[int, int]]) -> int:
        """Put the places of up to `count` objects where they belong; how many were taken.

        Errors: BadPack for one that is not what its id says, TooBig for one above the limit.
        """
        for taken in range(count):
            self._have(_HEAD_BYTES_MAX)
            head = self._head()
            if head is None:
                return taken
            digits, start, length = head
            _check_size(length, self._bytes_max)
            moved = self._start
            self._have(start - self._at + length)
            start -= self._start - moved
            content = memoryview(self._data)[start : start + length]
            digest = hashlib.sha256(content).hexdigest()
            if len(content) < length:
                raise msgpack.OutOfData
            if digits != digest.encode():
                _wrong("object", digits.decode("ascii", "replace"))
            objects[digest] = self._start + start, length
            self._at = start + length
        return count

    def _head(self) -> tuple[bytes, int, int] | None:
        """The digits of the id, where the content begins and how long it is; None if unusual."""
        data, at = self._data, self._at
        for usual in (_BARE, _PREFIXED):
            if data.startswith(usual, at):
                first = at + len(usual)
                key = first + _ID_DIGITS
                marker = key + len(_CONTENT)
                if not data.startswith(_CONTENT, key) or marker >= len(data):
                    return None
                width = _LENGTH_BYTES.get(data[marker])
                if width is None:
                    return None
                start = marker + 1 + width
                return data[first:key], start, int.from_bytes(data[marker + 1 : start], "big")
        return None

    def _have(self, count: int) -> None:
        """Make so many bytes be there from here on, unless the pack ends before."""
        short = count - (len(self._data) - self._at)
        if short <= 0:
            return
        parts = [self._data[self._at :]]
        while short > 0 and (part := self._plain.read(_READ_BYTES)):
            parts.append(part)
            short -= len(part)
        self._start += self._at
        self._data, self._at = b"".join(parts), 0


# A manifest is nearly all of a pack, so it is decoded once: the other values around it first.
_snapshot_decoder = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])
_manifest_decoder = msgspec.msgpack.Decoder(dict[str, str])
_delta_decoder = msgspec.msgpack.Decoder(dict[str, str | None])
_text_decoder = msgspec.msgpack.Decoder(str)
_value_decoder = msgspec.msgpack.Decoder()
_WHOLE: dict[str, msgspec.msgpack.Decoder[Any]] = {
    "snapshot_id": _text_decoder,
    "manifest": _manifest_decoder,
}
_CHANGED: dict[str, msgspec.msgpack.Decoder[Any]] = {
    "snapshot_id": _text_decoder,
    "base_snapshot_id": _text_decoder,
    "delta": _delta_decoder,
}


class _CommitForm(msgspec.Struct):
    """What a commit must be made of."""

    commit_id: str
    snapshot_id: str
    message: str
    committed_at: str
    parent_commit_id: str | None = None
    parent2_commit_id: str | None = None
    metadata: dict[str, Any] | None = None


_commit_decoder = msgspec.msgpack.Decoder(_CommitForm)
_record_decoder = msgspec.msgpack.Decoder(dict[str, Any])


def _snapshot_record(raw: bytes) -> Record:
    """A snapshot; a wrong type in what it must be made of is refused before it is built."""
    parts = _snapshot_decoder.decode(raw)
    required = _CHANGED if "base_snapshot_id" in parts else _WHOLE
    if missing := required.keys() - parts.keys():
        raise msgspec.ValidationError(f"no {min(missing)}")
    return {key: required.get(key, _value_decoder).decode(part) for key, part in parts.items()}


def _is_manifest_of(snapshot_id: str, manifest: dict[str, str]) -> bool:
    """Whether it is, however its author wrote ids, and however they were asked for."""
    if is_snapshot_id(snapshot_id, manifest):
        return True
    bare = {path: object_id.removeprefix("sha256:") for path, object_id in manifest.items()}
    return bare != manifest and is_snapshot_id(snapshot_id, bare)


def _decode(decode: Callable[[bytes], Any], raw: bytes, noun: str) -> Any:
    try:
        return decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadPack(f"A {noun} of the pack cannot be read.") from error


def _check_size(count: int, bytes_max: int) -> None:
    if count > bytes_max:
        raise TooBig("An object of the pack is too large.", size_bytes=count)


def _wrong(noun: str, entity_id: str) -> NoReturn:
    raise BadPack(f"The {noun} {entity_id[:80]} is not what its id says.")
