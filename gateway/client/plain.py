"""The plain bytes of a pack, front to back, and the file in which they stay.

A compressed pack is written out to a temporary file, up to a bound, a piece at a time while it is
read: so every byte passes through the memory once, and stands in the file before it is looked at.
"""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path
from typing import BinaryIO

import zstandard

from gateway.client.errors import BadPack, TooBig

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_WINDOW_BYTES_MAX = 2**27  # What zstd itself takes without being told to take more.
# Pieces that the allocator keeps at hand: larger ones are fresh pages for the kernel to clear.
_READ_BYTES = 64 * 1024


class PlainPack:
    """Reads a pack once. `file` keeps its plain bytes; whoever takes it closes it."""

    def __init__(self, path: Path, *, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._packed: BinaryIO | None = None
        self._reader: io.RawIOBase | BinaryIO
        self.bytes_read = 0
        opened = path.open("rb", buffering=0)
        try:
            is_packed = os.pread(opened.fileno(), len(_ZSTD_MAGIC), 0) == _ZSTD_MAGIC
            if not is_packed:
                self.file: BinaryIO = opened
                self._reader = opened
                return
            # Not a SpooledTemporaryFile: objects are read by descriptor and offset.
            self.file = tempfile.TemporaryFile(prefix="mpack-", buffering=0)  # noqa: SIM115  handed to the caller
        except BaseException:
            opened.close()
            raise
        self._packed = opened
        decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES_MAX)
        self._reader = decompressor.stream_reader(opened)

    def read(self, count: int = _READ_BYTES) -> bytes:
        """Up to so many bytes, or none at the end.

        Errors: BadPack when the compression is broken; TooBig above the bound.
        """
        try:
            data = self._reader.read(min(count, _READ_BYTES))
        except zstandard.ZstdError as error:
            raise BadPack("The pack's compression is broken.") from error
        assert data is not None, "only files that do not block are read"
        self.bytes_read += len(data)
        if self._packed is not None:
            if self.bytes_read > self._bytes_max:
                raise TooBig("The pack is too large when unpacked.", bytes_max=self._bytes_max)
            left = memoryview(data)
            while left:
                left = left[self.file.write(left) :]
        return data

    def read_back(self, start: int, length: int) -> bytes:
        """Bytes that were read before."""
        return os.pread(self.file.fileno(), length, start)

    def close_packed(self) -> None:
        """Let go of the compressed file, if there is one."""
        if self._packed is not None:
            self._packed.close()
