"""Reading a pack that came from somewhere else: every id is recomputed before anything is used.

The pack is read once, from front to back, and the objects stay in its file: a `Pack` keeps commits
and snapshots in memory and, for an object, the place of its bytes.

A pack may be thin (it holds only what the asking side lacked), so a commit's parents, or files of
its snapshot, may be in an earlier pack. What is in it, though, is whole and right.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from gateway.client.errors import BadPack
from gateway.client.manifests import Record
from gateway.client.plain import PlainPack
from gateway.client.reading import PackReader
from leases.errors import InvalidRequest

UNPACKED_BYTES_MAX = 32 * 1024**3
OBJECT_BYTES_MAX = 2 * 1024**3
RECORD_BYTES_MAX = 256 * 1024**2  # A manifest of two million files.


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a pack may ask of this machine."""

    unpacked_bytes_max: int = UNPACKED_BYTES_MAX
    object_bytes_max: int = OBJECT_BYTES_MAX
    record_bytes_max: int = RECORD_BYTES_MAX


@dataclass(slots=True)
class Pack:
    """A verified pack: commits and snapshots by their bare ids, objects by their place.

    A snapshot that came as changes on another one has its whole manifest here as well; it is made
    when it is asked for. Close the pack (or use it as a context manager) to let go of the file.
    """

    file: BinaryIO
    commits: Mapping[str, Record] = field(default_factory=dict)
    snapshots: Mapping[str, Record] = field(default_factory=dict)
    objects: Mapping[str, tuple[int, int]] = field(default_factory=dict)

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
    plain = PlainPack(path, bytes_max=limits.unpacked_bytes_max)
    reader = PackReader(plain, limits)
    try:
        reader.read()
    except InvalidRequest as error:  # A malformed id, as the wire's own check puts it.
        plain.file.close()
        raise BadPack(error.message) from error
    except BaseException:
        plain.file.close()
        raise
    finally:
        plain.close_packed()
    return Pack(plain.file, reader.commits, reader.snapshots, reader.objects)
