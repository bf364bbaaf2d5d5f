"""The local store: blobs as files in one folder, with signed URLs that the gateway itself serves.

Replicas may share the folder (one machine, or a network file system with atomic rename and hard
links). Every call is short work on a thread; deletions have threads of their own, so that a large
blob being synced does not make a deletion late. Nothing here reads a process clock: URLs are
signed and checked by the database's time, as the gateway knows it.
"""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing
from datetime import datetime
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Self, TypeVar

from gateway.storage.folder import Folder, OpenFile, Upload, failure_of, sync_directory
from gateway.storage.offload import Offload
from gateway.storage.signing import UrlExpired, UrlSigner, UrlTampered, shared_signing_key
from leases.errors import InvalidRequest, StoreUnavailable
from leases.ports import BlobInfo, DeleteOutcome

__all__ = ["LocalStore", "OpenBlob", "UrlExpired", "UrlTampered"]

SERVED_BLOCK_BYTES = 256 * 1024  # What a download holds in memory.
WRITE_BLOCK_BYTES = 1024 * 1024  # A change of threads costs about 50 µs; small chunks are joined.
LIST_BATCH = 1000  # As S3's pages; some 300 KiB of entries in memory.
_FILE_THREADS_MAX = 8
# An unlink mostly waits for the disk: a batch is shared out among threads, each with a part that is
# worth the change of threads. For four reap workers at once.
_DELETE_THREADS_A_BATCH = 4
_DELETE_THREADS_MAX = 16
_DELETE_PART_LEAST = 32

T = TypeVar("T")


class LocalStore:
    """A blob store on a folder. Open it once before use, and close it at the end.

    `public_url` is where clients reach this gateway; when it is empty there is nobody to serve
    signed URLs, so `supports_presign` is false.
    """

    def __init__(self, root: Path, *, public_url: str, clock: Callable[[], datetime]) -> None:
        self._folder = Folder(root.absolute())
        self._public_url = public_url
        self._clock = clock
        self._signer: UrlSigner | None = None
        self._files = Offload("blob-files", threads_max=_FILE_THREADS_MAX)
        self._deletions = Offload("blob-deletions", threads_max=_DELETE_THREADS_MAX)
        # Batches side by side would share the disk, and the oldest would end as late as the newest.
        self._deletion_turn = asyncio.Lock()

    def __repr__(self) -> str:
        return f"LocalStore({str(self._folder.root)!r})"

    async def open(self) -> Self:
        """Make the folder, clear long dead uploads away, and read or make the signing key."""
        key = await self._files.run(_translated(self._prepare))
        self._signer = UrlSigner(key, public_url=self._public_url, clock=self._clock)
        return self

    async def close(self) -> None:
        """Let the threads go. Blobs still being served stay readable to whoever holds them."""
        await self._files.close()
        await self._deletions.close()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    @property
    def supports_presign(self) -> bool:
        """Whether somebody serves this store's URLs."""
        return bool(self._public_url)

    async def put(self, key: str, data: bytes | AsyncIterator[bytes]) -> None:
        """Store a blob whole: synced, then under its name by one rename, over an older one too.

        Effects: an error, of the source too, and a cancellation leave no temporary file. Once a
                 cancellation has been seen nothing more happens; if it fell into the rename, the
                 blob may be there, whole.
        Errors:  InvalidKey; StoreUnavailable, a full disk included.
        """
        upload = Upload(self._folder, key)
        try:
            async with aclosing(_blocks(data)) as blocks:
                async for block in blocks:
                    await self._files.run(_translated(partial(upload.write, block)))
            await self._files.run(_translated(upload.sync))
            await self._files.run(_translated(upload.publish))
        except BaseException:
            await self._files.finish(_translated(upload.discard))
            raise

    async def get(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        """The bytes of `[start, stop)`, cut at the blob's end; BlobMissing where there is none."""
        first = 0 if start is None else start
        if first < 0 or (stop is not None and stop < first):
            raise InvalidRequest("A range runs forward from 0.", start=start, stop=stop)
        file = OpenFile(self._folder, key)
        return await self._files.run_or_leave(_translated(partial(_read, file, first, stop)))

    async def delete(self, key: str) -> DeleteOutcome:
        """Remove a blob, durably; one that is gone already is a success."""
        outcome = (await self.delete_many([key]))[key]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def delete_many(self, keys: Sequence[str]) -> Mapping[str, DeleteOutcome | Exception]:
        """Remove blobs, each directory synced once; an outcome or an exception for every key.

        Effects: a large batch is shared out among threads. When cancelled it may still come to its
                 end a little later, as a request to any other store would.
        """
        distinct = list(dict.fromkeys(keys))
        step = max(_DELETE_PART_LEAST, -(-len(distinct) // _DELETE_THREADS_A_BATCH))
        parts = [distinct[start : start + step] for start in range(0, len(distinct), step)]
        async with self._deletion_turn:
            removed = await asyncio.gather(
                *(
                    self._deletions.run_or_leave(
                        _translated(partial(self._folder.remove_many, part))
                    )
                    for part in parts
                )
            )
        return dict(chain.from_iterable(outcomes.items() for outcomes in removed))

    async def head(self, key: str) -> BlobInfo | None:
        """Size and time of a blob, None where there is none."""
        return await self._files.run_or_leave(_translated(partial(self._folder.stat, key)))

    async def list(self, prefix: str) -> AsyncIterator[BlobInfo]:
        """Every blob whose key starts with this, in no order, read in batches."""
        walk = self._folder.walk(prefix)
        try:
            while batch := await self._files.run(_translated(partial(_next_batch, walk))):
                for info in batch:
                    yield info
        finally:
            walk.close()

    async def abort_uploads(self, key: str) -> int:
        """Remove the temporary files of this key; a put still at work fails and leaves nothing."""
        work = partial(self._folder.remove_scratch, key)
        return await self._deletions.run_or_leave(_translated(work))

    async def presign_get(self, key: str, *, expires_in: int) -> str:
        """A URL to read this blob, dead `expires_in` seconds after the current whole second."""
        return self._opened_signer.sign("GET", key, expires_in=expires_in)

    async def presign_put(self, key: str, *, expires_in: int) -> str:
        """A URL to store this blob once or more often, until it is dead like one to read it."""
        return self._opened_signer.sign("PUT", key, expires_in=expires_in)

    def verify(self, method: str, key: str, *, expires: str, signature: str) -> None:
        """Pass a request whose URL this folder's key signed and which still lives.

        Errors:  UrlTampered, UrlExpired (both 403).
        """
        self._opened_signer.verify(method, key, expires=expires, signature=signature)

    async def open_blob(self, key: str) -> OpenBlob:
        """Open a blob to serve it in parts; the caller closes it. BlobMissing when it is gone."""
        file = OpenFile(self._folder, key)
        try:
            await self._files.run(_translated(file.open))
        except BaseException:
            file.close()
            raise
        return OpenBlob(file, self._files)

    @property
    def _opened_signer(self) -> UrlSigner:
        assert self._signer is not None, "the store was not opened"
        return self._signer

    def _prepare(self) -> bytes:
        self._folder.prepare()
        key = shared_signing_key(self._folder.signing_key_path, scratch=self._folder.scratch)
        sync_directory(self._folder.root)
        return key


class OpenBlob:
    """A blob being served. Deleting it meanwhile does not disturb the reading."""

    __slots__ = ("_file", "_threads", "etag", "size_bytes")

    def __init__(self, file: OpenFile, threads: Offload) -> None:
        self._file = file
        self._threads = threads
        self.size_bytes = file.size_bytes
        self.etag = file.etag

    async def read(self, start: int, stop: int) -> bytes | memoryview:
        """The bytes of `[start, stop)`.

        What the system holds in memory is copied at once: a change of threads costs more than that,
        and a pack that many ask for was read a moment ago.
        """
        if (held := self._file.read_held(start, stop)) is not None:
            return held
        return await self._threads.run(_translated(partial(self._file.read, start, stop)))

    async def chunks(self, start: int, stop: int) -> AsyncIterator[bytes | memoryview]:
        """The bytes of `[start, stop)`, in pieces.

        Errors: StoreUnavailable, also when the file became shorter meanwhile.
        """
        while start < stop:
            chunk = await self.read(start, min(start + SERVED_BLOCK_BYTES, stop))
            if not chunk:
                raise StoreUnavailable("A blob became shorter while it was read.")
            start += len(chunk)
            yield chunk

    async def close(self) -> None:
        """Let the file go; its disk space returns if it was deleted meanwhile."""
        self._file.close()


def _translated(work: Callable[[], T]) -> Callable[[], T]:
    """The same work, with errors of the operating system told as the store's own."""

    def run() -> T:
        try:
            return work()
        except OSError as error:
            raise failure_of(error) from error

    return run


async def _blocks(data: bytes | AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """The data in pieces worth a change of threads; at least one, also for an empty blob."""
    if isinstance(data, bytes):
        yield data
        return
    waiting = bytearray()
    empty = True
    async for chunk in data:
        if not waiting and len(chunk) >= WRITE_BLOCK_BYTES:
            yield chunk  # A spool's pieces: nothing to join, so nothing to copy.
            empty = False
            continue
        waiting += chunk
        if len(waiting) >= WRITE_BLOCK_BYTES:
            yield bytes(waiting)
            waiting.clear()
            empty = False
    if waiting or empty:
        yield bytes(waiting)


def _read(file: OpenFile, start: int, stop: int | None) -> bytes:
    try:
        file.open()
        return file.read(start, file.size_bytes if stop is None else min(stop, file.size_bytes))
    finally:
        file.close()


def _next_batch(walk: Iterator[BlobInfo]) -> list[BlobInfo]:
    return list(islice(walk, LIST_BATCH))
