"""The plain bytes of a pack, front to back.

A compressed pack is decompressed a piece at a time, up to a bound, and nothing of it is kept: its
bytes are hashed while they are in the processor's cache.
"""

from __future__ import annotations

import os
from io import FileIO

import zstandard

from gateway.client.errors import BadPack, TooBig

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_WINDOW_BYTES_MAX = 2**27  # What zstd itself takes without being told to take more.
# Pieces that the allocator keeps at hand: larger ones are fresh pages for the kernel to clear.
_READ_BYTES = 64 * 1024


def is_packed(file: FileIO) -> bool:
    """Whether this file is a compressed pack."""
    return os.pread(file.fileno(), len(_ZSTD_MAGIC), 0) == _ZSTD_MAGIC


class PlainPack:
    """Reads a pack once, from the beginning of its file, which stays its owner's."""

    def __init__(self, file: FileIO, *, bytes_max: int) -> None:
        self.bytes_read = 0
        self._bytes_max: int | None = None
        self._reader: FileIO | zstandard.ZstdDecompressionReader = file
        file.seek(0)
        if is_packed(file):
            self._bytes_max = bytes_max
            decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES_MAX)
            self._reader = decompressor.stream_reader(file, closefd=False)

    def read(self, count: int = _READ_BYTES) -> bytes:
        """Up to so many bytes, or none at the end.

        Errors: BadPack when the compression is broken; TooBig above the bound.
        """
        try:
            piece = self._reader.read(min(count, _READ_BYTES))
        except zstandard.ZstdError as error:
            raise BadPack("The pack's compression is broken.") from error
        self._count(len(piece))
        return piece

    def read_into(self, buffer: memoryview) -> int:
        """Fill this buffer, or some of it; how much, 0 at the end.

        Errors: as for `read`.
        """
        try:
            count = self._reader.readinto(buffer)
        except zstandard.ZstdError as error:
            raise BadPack("The pack's compression is broken.") from error
        self._count(count)
        return count

    def _count(self, count: int) -> None:
        self.bytes_read += count
        if self._bytes_max is not None and self.bytes_read > self._bytes_max:
            raise TooBig("The pack is too large when unpacked.", bytes_max=self._bytes_max)
