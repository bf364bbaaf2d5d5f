"""Downloading a pack from its presigned URL: resumed when cut, checked, asked for anew once.

The transfer is tried a bounded number of times. After a cut it goes on where it stopped (Range,
with If-Range when the store named an ETag); a store that ignores Range starts it over. A URL that
died meanwhile (403, 404, 410) is replaced by one new fetch. Whatever happened on the way, the
bytes count only when their SHA-256 is the one of the answer.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Self

from gateway.client.conversations import MpackAnswer, fetch_mpack
from gateway.client.errors import BadPack, DownloadCut, Refused, TooBig, UrlExpired, shown_url
from gateway.client.exchange import Address, Call, Conversation, Pause, pause_seconds
from gateway.client.value import Value

if TYPE_CHECKING:
    from pathlib import Path

PACK_BYTES_MAX = 8 * 1024**3
ATTEMPTS_MAX = 10
_EXPIRED = frozenset({403, 404, 410})
# No pack is longer than these digits say, and Python reads no number of thousands of them.
_PARTIAL = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)\Z", re.ASCII)


class Downloaded(Value):
    """A pack on disk, checked against its SHA-256; as a context manager it is removed again.

    It may be given to whatever takes a path: `unpack(got)`, `open(got)`.
    """

    name: str
    answer: MpackAnswer
    attempts: int
    resumed: int
    fetched_anew: bool

    @property
    def path(self) -> Path:
        """Where it is."""
        from pathlib import Path

        return Path(self.name)

    def __fspath__(self) -> str:
        return self.name

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _remove(self.name)


def download(
    address: Address,
    answer: MpackAnswer,
    path: str | os.PathLike[str] | None = None,
    *,
    pack_bytes_max: int = PACK_BYTES_MAX,
) -> Conversation[Downloaded]:
    """Bring the pack to this path (a temporary file when none is given).

    Effects: writes `<path>.part` and renames it when the bytes are whole and right.
    Errors:  TooBig, UrlExpired, DownloadCut, BadPack, Refused; the partial file is removed.
    """
    handle, part = _part_file(path)
    try:
        with os.fdopen(handle, "r+b") as file:
            transfer = _Transfer(file)
            done = yield from _fetch_bytes(address, answer, transfer, bytes_max=pack_bytes_max)
        final = part if path is None else os.fspath(path)
        if final != part:
            os.replace(part, final)
    except BaseException:
        _remove(part)
        raise
    return Downloaded(
        name=final,
        answer=done,
        attempts=transfer.attempts,
        resumed=transfer.resumed,
        fetched_anew=done is not answer,
    )


def _part_file(path: str | os.PathLike[str] | None) -> tuple[int, str]:
    """A new file that nobody else reads: its descriptor and its name."""
    if path is None:
        import tempfile

        return tempfile.mkstemp(prefix="mpack-", suffix=".part")
    name = f"{os.fspath(path)}.{os.urandom(8).hex()}.part"
    return os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), name


def _remove(name: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name)


def _fetch_bytes(
    address: Address, answer: MpackAnswer, transfer: _Transfer, *, bytes_max: int
) -> Conversation[MpackAnswer]:
    """Try until the bytes are whole; the answer that they belong to in the end."""
    first = answer
    transfer.aim_at(answer, bytes_max=bytes_max)
    if answer.mpack is not None:
        transfer.take_whole(answer.mpack)
        return answer
    for attempt in range(ATTEMPTS_MAX):
        yield (transfer.call(),)
        if transfer.is_whole():
            return answer
        if transfer.status in _EXPIRED:
            if answer is not first:
                raise UrlExpired(url=shown_url(answer.mpack_url or ""), status=transfer.status)
            answer = yield from fetch_mpack(address, first.wish)
            transfer.aim_at(answer, bytes_max=bytes_max)
            if answer.mpack is not None:
                transfer.take_whole(answer.mpack)
                return answer
            continue
        transfer.refuse_hopeless()
        yield Pause(pause_seconds(min(attempt, 4)))
    raise DownloadCut(attempts=transfer.attempts, received_bytes=transfer.received)


class _Transfer:
    """A sink that writes a pack to a file, over as many attempts as it takes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self._url = self._sha256 = ""
        self._etag: str | None = None
        self._size = 0
        self._takes = False
        self.received = self.attempts = self.resumed = self.status = 0

    def aim_at(self, answer: MpackAnswer, *, bytes_max: int) -> None:
        """The bytes this answer promises; what is here already stays if they are the same."""
        if answer.size_bytes > bytes_max:
            raise TooBig(
                "The pack is too large.", size_bytes=answer.size_bytes, bytes_max=bytes_max
            )
        if (answer.sha256, answer.size_bytes) != (self._sha256, self._size):
            self._start_over()
        self._url, self._sha256, self._size = (
            answer.mpack_url or "",
            answer.sha256,
            answer.size_bytes,
        )
        self._etag = None  # Another blob's ETag would turn a Range request into a whole answer.

    def call(self) -> Call:
        """The request for what is still missing."""
        self.attempts += 1
        self.status, self._takes = 0, False
        headers = {"Accept-Encoding": "identity"}
        if self.received:
            headers["Range"] = f"bytes={self.received}-"
            if self._etag is not None:
                headers["If-Range"] = self._etag
        return Call(method="GET", url=self._url, headers=headers, sink=self, private=False)

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """The head of an answer: go on, start over, or take nothing."""
        self.status = status
        etag = headers.get("etag", "")
        if status == 206 and self._continues(headers.get("content-range", "")):
            self.resumed += 1
            self._takes = True
        elif status == 200:
            self._start_over()
            self._takes = True
        elif status in (206, 416):
            self._start_over()
        if self._takes and etag.startswith('"'):  # If-Range takes strong ones only.
            self._etag = etag

    def feed(self, chunk: bytes) -> None:
        """A piece of the pack."""
        if not self._takes:
            return
        if self.received + len(chunk) > self._size:
            raise BadPack("The store sent more bytes than the pack has.", size_bytes=self._size)
        self._file.write(chunk)
        self._hash.update(chunk)
        self.received += len(chunk)

    def lost(self, reason: str) -> None:
        """The connection broke; what came before it stays."""

    def take_whole(self, pack: bytes) -> None:
        """The pack came in the answer itself."""
        self._start_over()
        self._takes = True
        self.feed(pack)
        if not self.is_whole():
            raise BadPack("The pack is shorter than the answer says.")

    def is_whole(self) -> bool:
        """Whether all bytes are here; bytes that are not the promised ones are an error."""
        if self.received != self._size or (not self._size and self.status != 200):
            return False
        if self._hash.hexdigest() != self._sha256:
            raise BadPack(
                "The downloaded bytes are not the promised ones (SHA-256 differs).",
                sha256_expected=self._sha256,
                sha256_received=self._hash.hexdigest(),
            )
        return True

    def refuse_hopeless(self) -> None:
        """An answer that another attempt would not change."""
        if 300 <= self.status < 500 and self.status not in (408, 416, 429):
            raise Refused(
                "The store refused the download.", status=self.status, url=shown_url(self._url)
            )

    def _continues(self, content_range: str) -> bool:
        match = _PARTIAL.match(content_range)
        return match is not None and int(match[1]) == self.received

    def _start_over(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._hash = hashlib.sha256()
        self.received = 0
        self._etag = None
