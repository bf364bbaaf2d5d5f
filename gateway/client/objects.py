"""The objects of a pack, taken straight from its bytes.

They are most of a pack. The gateway writes each as the same map, so where an entry has just that
form its id, its length and its content stand at known places, and nothing is decoded or copied.
"""

from __future__ import annotations

import hashlib
from struct import Struct

import msgpack

from gateway.client.errors import BadPack, TooBig
from gateway.client.plain import PlainPack

Places = dict[str, tuple[int, int]]

# What stays in the processor's cache while it is decompressed into and hashed.
_BUFFER_BYTES = 256 * 1024
# An entry up to its content, for either form of the id: opening, digits, key, kind of bytes.
_BARE = b"\x82\xa9object_id\xd9\x40", Struct("13s64s8sB")
_PREFIXED = b"\x82\xa9object_id\xd9\x47sha256:", Struct("20s64s8sB")
_CONTENT = b"\xa7content"
_LENGTH_BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4}  # bin 8, bin 16, bin 32
_HEAD_BYTES_MAX = _PREFIXED[1].size + 4


class UsualObjects:
    """Takes objects from a pack's bytes for as long as each entry is the map that the gateway
    writes: `object_id` (bare or prefixed), then `content`, and nothing else.
    """

    def __init__(self, plain: PlainPack, data: bytes, *, start: int, bytes_max: int) -> None:
        self._plain, self._bytes_max = plain, bytes_max
        # Room for a head that is looked for where the pack ends.
        self._buffer = bytearray(max(_BUFFER_BYTES, len(data)) + _HEAD_BYTES_MAX)
        self._view = memoryview(self._buffer)[:-_HEAD_BYTES_MAX]
        self._view[: len(data)] = data
        self._start, self._at, self._filled = start, 0, len(data)

    @property
    def position(self) -> int:
        """Where the first byte that was not taken stands in the pack."""
        return self._start + self._at

    @property
    def rest(self) -> bytes:
        """What was read and not taken."""
        return bytes(self._view[self._at : self._filled])

    def take(self, count: int, places: Places) -> int:
        """Put the places of up to `count` objects where they belong; how many were taken.

        Errors: BadPack for one that is not what its id says, TooBig for one above the limit.
        """
        # The one loop of a clone that turns once an object: names are looked up before it.
        view, buffer, sha256, bytes_max = self._view, self._buffer, hashlib.sha256, self._bytes_max
        opening, form = self._form()
        head_bytes, unpack_from = form.size, form.unpack_from
        for taken in range(count):
            at = self._at
            if self._filled - at < _HEAD_BYTES_MAX:
                at = self._fill()
            told, digits, key, kind = unpack_from(buffer, at)
            width = _LENGTH_BYTES.get(kind)
            if told != opening or key != _CONTENT or width is None:
                return taken
            start = at + head_bytes + width
            length = int.from_bytes(buffer[start - width : start], "big")
            check_object_size(length, bytes_max)
            if start + length > self._filled:
                start += self._fill() - at
            place = self._start + start
            if start + length <= self._filled:
                digest = sha256(view[start : start + length]).hexdigest()
                self._at = start + length
            else:
                digest = self._long_digest(start, length)
            if digest.encode() != digits:
                raise wrong_object(digits.decode("ascii", "replace"))
            places[digest] = place, length
        return count

    def _form(self) -> tuple[bytes, Struct]:
        """How the ids are written: all as they were asked for, so as the first one."""
        self._fill()
        is_prefixed = self._buffer.startswith(_PREFIXED[0], self._at)
        return _PREFIXED if is_prefixed else _BARE

    def _fill(self) -> int:
        """Move what is left to the front and read on behind it; where it begins now."""
        left = self._filled - self._at
        self._view[:left] = self._view[self._at : self._filled]
        self._start += self._at
        self._at, self._filled = 0, left
        while self._filled < len(self._view):
            count = self._plain.read_into(self._view[self._filled :])
            if not count:
                break
            self._filled += count
        return 0

    def _long_digest(self, start: int, length: int) -> str:
        """The digest of a content that is longer than the buffer, or than the pack."""
        if start > self._filled:
            raise msgpack.OutOfData
        digest = hashlib.sha256(self._view[start : self._filled])
        left = length - (self._filled - start)
        self._start += start + length
        self._at = self._filled = 0
        while left:
            count = self._plain.read_into(self._view[: min(left, len(self._view))])
            if not count:
                raise msgpack.OutOfData
            digest.update(self._view[:count])
            left -= count
        return digest.hexdigest()


def check_object_size(count: int, bytes_max: int) -> None:
    """Refuse an object above the limit."""
    if count > bytes_max:
        raise TooBig("An object of the pack is too large.", size_bytes=count)


def wrong_object(object_id: str) -> BadPack:
    """The error for an object that is not what its id says."""
    return BadPack(f"The object {object_id[:80]} is not what its id says.")
