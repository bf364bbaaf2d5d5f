"""Reading a pack that came from somewhere else: every id is recomputed before anything is used.

The pack is read once, from front to back, and stays in its file: a `Pack` keeps commits and
snapshots in memory and, for an object, the place of its bytes.

A pack may be thin (it holds only what the asking side lacked), so a commit's parents, or files of
its snapshot, may be in an earlier pack. What is in it, though, is whole and right.
"""

from __future__ import annotations

import hashlib
import os
from _thread import allocate_lock
from collections.abc import Mapping
from io import FileIO
from types import TracebackType
from typing import BinaryIO, Self

from gateway.client.commits import Record
from gateway.client.errors import BadPack
from gateway.client.plain import PlainPack, is_packed
from gateway.client.reading import PackReader
from gateway.client.value import Value

UNPACKED_BYTES_MAX = 32 * 1024**3
OBJECT_BYTES_MAX = 2 * 1024**3
RECORD_BYTES_MAX = 256 * 1024**2  # A manifest of two million files.


class Limits(Value):
    """What a pack may ask of this machine."""

    unpacked_bytes_max: int = UNPACKED_BYTES_MAX
    object_bytes_max: int = OBJECT_BYTES_MAX
    record_bytes_max: int = RECORD_BYTES_MAX


class Pack:
    """A verified pack: commits and snapshots by their bare ids, objects by their place.

    A commit's record is decoded when it is asked for, and a snapshot that came as changes on
    another one gets its whole manifest then. Safe to use from several threads. Close the pack (or
    use it as a context manager) to let go of its files.
    """

    def __init__(self, file: FileIO, reader: PackReader, *, bytes_max: int) -> None:
        self._commits, self._snapshots = reader.commits, reader.snapshots
        self.commits: Mapping[str, Record] = self._commits
        self.snapshots: Mapping[str, Record] = self._snapshots
        self.objects: Mapping[str, tuple[int, int]] = reader.objects
        self._file = file
        self._bytes_max = bytes_max
        self._lock = allocate_lock()
        self._plain: BinaryIO | FileIO | None = None if is_packed(file) else file

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
        """Let go of the files."""
        self._file.close()
        if self._plain is not None:
            self._plain.close()

    def absent(self) -> set[str]:
        """The ids of what the pack names and does not hold; none, unless it is a thin one.

        Whoever fetched without haves has all that the heads reach when they are in the pack and
        nothing is absent.
        """
        return (
            (self._commits.parent_ids - self.commits.keys())
            | (self._commits.snapshot_ids - self.snapshots.keys())
            | (self._snapshots.object_ids() - self.objects.keys())
        )

    def content(self, object_id: str) -> bytes:
        """The bytes of one object, hashed again: the file may have changed since it was verified.

        Effects: the first one asked of a compressed pack decompresses it into a temporary file.
        Errors:  KeyError when it is not in this pack; BadPack when it is no longer what it was.
        """
        start, length = self.objects[object_id]
        with self._lock:
            if self._plain is None:
                self._plain = _unfolded(self._file, bytes_max=self._bytes_max)
        content = os.pread(self._plain.fileno(), length, start)
        if hashlib.sha256(content).hexdigest() != object_id:
            raise BadPack("The pack has changed since it was verified.", object_id=object_id)
        return content


def _unfolded(file: FileIO, *, bytes_max: int) -> BinaryIO:
    """The plain bytes in a file of their own, because objects are read by place."""
    import tempfile

    # Not a SpooledTemporaryFile: it must have a descriptor.
    plain_file = tempfile.TemporaryFile(prefix="mpack-", buffering=0)  # noqa: SIM115  handed to the caller
    try:
        plain = PlainPack(file, bytes_max=bytes_max)
        while piece := plain.read():
            left = memoryview(piece)
            while left:
                left = left[plain_file.write(left) :]
    except BaseException:
        plain_file.close()
        raise
    return plain_file


def unpack(path: str | os.PathLike[str], *, limits: Limits | None = None) -> Pack:
    """Read and verify a pack, plain or zstd.

    Errors: BadPack when anything in it is not what its id says; TooBig above a limit.
    """
    limits = limits or Limits()
    file = open(path, "rb", buffering=0)  # noqa: SIM115  handed to the caller
    try:
        reader = PackReader(PlainPack(file, bytes_max=limits.unpacked_bytes_max), limits)
        reader.read()
    except BaseException:
        file.close()
        raise
    return Pack(file, reader, bytes_max=limits.unpacked_bytes_max)
