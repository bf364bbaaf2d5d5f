"""Reading a pack that came from somewhere else: every id is recomputed before anything is used.

The file is read once, from front to back, and the objects stay in it: a `Pack` keeps commits and
snapshots in memory and, for an object, the place of its bytes. A compressed pack is first written
out to a temporary file, up to a bound.

A pack may be thin (it holds only what the asking side lacked), so a commit's parents, or files of
its snapshot, may be in an earlier pack. What is in it, though, is whole and right.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NoReturn, Self

import msgpack
import msgspec
import zstandard

from gateway.client.errors import BadPack, TooBig
from gateway.wire.ids import is_commit_id, is_snapshot_id
from leases.errors import InvalidRequest

UNPACKED_BYTES_MAX = 32 * 1024**3
OBJECT_BYTES_MAX = 2 * 1024**3
RECORD_BYTES_MAX = 256 * 1024**2  # A manifest of two million files.
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_WINDOW_BYTES_MAX = 2**27  # What zstd itself takes without being told to take more.
_READ_BYTES = 1024 * 1024
_VERSION = 1
_KEYS = {"version", "commits", "snapshots", "objects"}
_ITEMS_MAX = 16 * 1024**2

Record = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a pack may ask of this machine."""

    unpacked_bytes_max: int = UNPACKED_BYTES_MAX
    object_bytes_max: int = OBJECT_BYTES_MAX
    record_bytes_max: int = RECORD_BYTES_MAX


@dataclass(slots=True)
class Pack:
    """A verified pack: commits and snapshots by their bare ids, objects by their place.

    Close it (or use it as a context manager) to let go of the file.
    """

    file: BinaryIO
    commits: dict[str, Record] = field(default_factory=dict)
    snapshots: dict[str, Record] = field(default_factory=dict)
    objects: dict[str, tuple[int, int]] = field(default_factory=dict)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self.file.close()

    def content(self, object_id: str) -> bytes:
        """The bytes of one object.

        Errors: KeyError when it is not in this pack.
        """
        start, length = self.objects[object_id]
        return os.pread(self.file.fileno(), length, start) if length else b""


def unpack(path: Path, *, limits: Limits | None = None) -> Pack:
    """Read and verify a pack, plain or zstd.

    Errors: BadPack when anything in it is not what its id says; TooBig above a limit.
    """
    limits = limits or Limits()
    file = _plain_file(path, limits)
    try:
        pack = Pack(file)
        _Reader(pack, limits).read()
    except InvalidRequest as error:  # A malformed id, as the wire's own check puts it.
        file.close()
        raise BadPack(error.message) from error
    except BaseException:
        file.close()
        raise
    return pack


def _plain_file(path: Path, limits: Limits) -> BinaryIO:
    file = path.open("rb")
    try:
        if file.read(len(_ZSTD_MAGIC)) != _ZSTD_MAGIC:
            file.seek(0)
            return file
        file.seek(0)
        with file:
            return _decompressed(file, limits.unpacked_bytes_max)
    except BaseException:
        file.close()
        raise


def _decompressed(file: BinaryIO, bytes_max: int) -> BinaryIO:
    # Not a SpooledTemporaryFile: objects are read by descriptor and offset.
    plain = tempfile.TemporaryFile(prefix="mpack-")  # noqa: SIM115  (handed to the caller)
    size = 0
    try:
        reader = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES_MAX).stream_reader(file)
        while chunk := reader.read(_READ_BYTES):
            size += len(chunk)
            if size > bytes_max:
                break
            plain.write(chunk)
        plain.flush()
        plain.seek(0)
    except zstandard.ZstdError as error:
        plain.close()
        raise BadPack("The pack's compression is broken.") from error
    except BaseException:
        plain.close()
        raise
    if size > bytes_max:
        plain.close()
        raise TooBig("The pack is too large when unpacked.", bytes_max=bytes_max)
    return plain


class _Reader:
    """One walk over the file, header by header, so that no header can ask for memory."""

    def __init__(self, pack: Pack, limits: Limits) -> None:
        self._pack, self._limits = pack, limits
        self._size = os.fstat(pack.file.fileno()).st_size
        self._unpacker = msgpack.Unpacker(
            pack.file,
            read_size=_READ_BYTES,
            max_buffer_size=max(limits.object_bytes_max, limits.record_bytes_max) + 64,
            # An array's header alone makes the decoder allocate for all its items.
            max_array_len=_ITEMS_MAX,
            max_map_len=_ITEMS_MAX,
            strict_map_key=False,
        )

    def read(self) -> None:
        """The whole map; keys that nobody here knows are passed over."""
        keys = set()
        try:
            for _ in range(self._unpacker.read_map_header()):
                key = self._unpacker.unpack()
                self._part(key)
                keys.add(key if isinstance(key, str) else None)
        except msgpack.OutOfData:
            raise BadPack("The pack ends too early.") from None
        except msgpack.BufferFull:
            raise TooBig("An entry of the pack is too large.") from None
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise BadPack("The pack is not a msgpack map.") from error
        if not keys >= _KEYS:
            raise BadPack("This is a msgpack map, but not a pack.")
        if self._unpacker.tell() != self._size:
            raise BadPack("There is something behind the pack's end.")

    def _part(self, key: object) -> None:
        match key:
            case "version":
                version = self._unpacker.unpack()
                if version != _VERSION:
                    raise BadPack(f"This pack's version is {version!r:.20}, not {_VERSION}.")
            case "commits":
                self._records(_add_commit)
            case "snapshots":
                self._records(_add_snapshot)
            case "objects":
                for _ in range(self._unpacker.read_array_header()):
                    self._object()
            case _:
                self._unpacker.skip()

    def _records(self, add: Callable[[Pack, bytes], None]) -> None:
        for _ in range(self._unpacker.read_array_header()):
            start = self._unpacker.tell()
            self._unpacker.skip()
            length = self._unpacker.tell() - start
            if length > self._limits.record_bytes_max:
                raise TooBig("A record of the pack is too large.", size_bytes=length)
            add(self._pack, os.pread(self._pack.file.fileno(), length, start))

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
                    if len(content) > self._limits.object_bytes_max:
                        raise TooBig("An object of the pack is too large.", size_bytes=len(content))
                    place = (self._unpacker.tell() - len(content), len(content))
                    digest = hashlib.sha256(content).hexdigest()
                case _:
                    self._unpacker.skip()
        if not isinstance(object_id, str) or place is None:
            raise BadPack("An object of the pack has no id or no content.")
        if object_id.removeprefix("sha256:") != digest:
            _wrong("object", object_id)
        self._pack.objects[digest] = place


# A manifest is nearly all of a pack, so it is decoded once: the other values around it first.
_snapshot_decoder = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])
_manifest_decoder = msgspec.msgpack.Decoder(dict[str, str])
_text_decoder = msgspec.msgpack.Decoder(str)
_value_decoder = msgspec.msgpack.Decoder()


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


def _add_snapshot(pack: Pack, raw: bytes) -> None:
    record: Record = _decode(_snapshot_record, raw, "snapshot")
    snapshot_id = record["snapshot_id"].removeprefix("sha256:")
    if not is_snapshot_id(snapshot_id, record["manifest"]):
        _wrong("snapshot", snapshot_id)
    pack.snapshots[snapshot_id] = record


def _snapshot_record(raw: bytes) -> Record:
    """A snapshot; a wrong type in what it must be made of is refused before it is built."""
    parts = _snapshot_decoder.decode(raw)
    required: dict[str, msgspec.msgpack.Decoder[Any]] = {
        "snapshot_id": _text_decoder,
        "manifest": _manifest_decoder,
    }
    if missing := required.keys() - parts.keys():
        raise msgspec.ValidationError(f"no {min(missing)}")
    return {key: required.get(key, _value_decoder).decode(part) for key, part in parts.items()}


def _add_commit(pack: Pack, raw: bytes) -> None:
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
    record: Record = _decode(_record_decoder.decode, raw, "commit")
    pack.commits[commit_id] = record


def _decode(decode: Callable[[bytes], Any], raw: bytes, noun: str) -> Any:
    try:
        return decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadPack(f"A {noun} of the pack cannot be read.") from error


def _wrong(noun: str, entity_id: str) -> NoReturn:
    raise BadPack(f"The {noun} {entity_id[:80]} is not what its id says.")
