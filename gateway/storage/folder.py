"""A folder of blobs: plain blocking file work, durable and atomic. `local.py` makes it async.

A blob is written under `.tmp`, synced, renamed into place, and its directory synced: after a crash
it is there whole or not at all. Names with a leading dot are ours and no key can reach them.
Directories are made and never removed, so that no put can lose its directory to a delete.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Generator, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from gateway.storage.keys import InvalidKey, check_key, check_prefix, is_key
from leases.errors import BlobMissing, Failure, StoreUnavailable, Unavailable
from leases.ids import new_token
from leases.ports import BlobInfo, DeleteOutcome

# A temporary file nobody has written to for this long has no writer any more: no lease, and so
# no upload, lives longer (lease_life_max). Younger leftovers go by `abort_uploads`.
LEFTOVER_IDLE_SECONDS = 24 * 3600

_SIGNING_KEY_NAME = ".signing-key"
_DURABLE_DIRECTORIES_MAX = 10_000  # Some megabytes; forgetting them only costs a few more syncs.
_NO_SUCH_BLOB = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


class Folder:
    """The blobs under one root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.scratch = root / ".tmp"
        self.signing_key_path = root / _SIGNING_KEY_NAME
        self._durable: set[Path] = set()
        self._identity: tuple[int, int] | None = None
        # Whether the system says which bytes it holds in memory; only Linux has the question.
        self.tells_what_is_held = hasattr(os, "RWF_NOWAIT")

    def prepare(self) -> None:
        """Make the folders and clear away what uploads of long dead processes left."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(PermissionError):  # The root may stand in a folder that is not ours to read.
            sync_directory(self.root.parent)
        self.scratch.mkdir(mode=0o700, exist_ok=True)
        sync_directory(self.root)
        self._clear_idle_leftovers()
        self._identity = _identity(self.scratch)

    def check_still_there(self) -> None:
        """StoreUnavailable unless this is the folder that was prepared.

        Asked wherever something is absent: when a volume is unmounted under a running gateway,
        every blob looks deleted, and all of them return with the volume.
        """
        with suppress(OSError):
            if _identity(self.scratch) == self._identity:
                return
        raise StoreUnavailable("The folder of blobs is not the one that was opened.")

    def path(self, key: str) -> Path:
        """Where this blob lies; InvalidKey when no blob may have that key."""
        return self.root / check_key(key)

    def ensure_directory(self, directory: Path) -> None:
        """Make a directory, and see to it that its entry and those above it are on disk.

        Another process may have made one a moment ago without having synced its parent yet; so a
        directory counts as durable only once this process has synced the way to it.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if directory in self._durable:
            return
        above = directory
        while above != self.root:
            above = above.parent
            sync_directory(above)
        if len(self._durable) >= _DURABLE_DIRECTORIES_MAX:
            self._durable.clear()
        self._durable.add(directory)

    def stat(self, key: str) -> BlobInfo | None:
        """One blob's size and time, None where there is none."""
        try:
            found = self.path(key).lstat()
        except _NO_SUCH_BLOB:
            self.check_still_there()
            return None
        return _info(key, found) if stat.S_ISREG(found.st_mode) else None

    def remove_many(self, keys: Iterable[str]) -> dict[str, DeleteOutcome | Exception]:
        """Delete blobs and sync each directory once, for gone ones too.

        An earlier try may have removed the entry and died before its sync; a power cut would then
        bring back a blob that was recorded as deleted.
        """
        outcomes: dict[str, DeleteOutcome | Exception] = {}
        touched: dict[str, list[str]] = {}
        for key in keys:
            if not is_key(key):
                outcomes[key] = InvalidKey()
                continue
            # No Path: making one takes about as much processor time as the unlink.
            outcomes[key] = _removed(f"{self.root}/{key}")
            touched.setdefault(key.rpartition("/")[0], []).append(key)
        for directory, within in touched.items():
            try:
                sync_directory(self.root / directory)
            except _NO_SUCH_BLOB:
                continue
            except OSError as error:
                outcomes.update(dict.fromkeys(within, failure_of(error)))
        if DeleteOutcome.ALREADY_GONE in outcomes.values():
            self.check_still_there()
        return outcomes

    def remove_scratch(self, key: str) -> int:
        """Remove the temporary files of this key; an upload still at work then fails."""
        prefix = scratch_prefix(check_key(key))
        removed = 0
        with os.scandir(self.scratch) as entries:
            for entry in entries:
                if entry.name.startswith(prefix):
                    with suppress(FileNotFoundError):
                        Path(entry.path).unlink()
                        removed += 1
        return removed

    def walk(self, prefix: str) -> Generator[BlobInfo, None, None]:
        """Every blob whose key starts with this text; one that vanishes meanwhile is left out."""
        pending = [check_prefix(prefix).rpartition("/")[0]]
        self.check_still_there()
        while pending:
            directory = pending.pop()
            try:
                entries = os.scandir(self.root / directory)
            except _NO_SUCH_BLOB:
                continue
            with entries:
                for entry in entries:
                    key = f"{directory}/{entry.name}" if directory else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        if not entry.name.startswith(".") and f"{key}/".startswith(prefix):
                            pending.append(key)
                    elif key.startswith(prefix) and is_key(key):
                        info = self.stat(key)
                        if info is not None:
                            yield info

    def _clear_idle_leftovers(self) -> None:
        # Measured by the file system's own clock, which also dated the leftovers.
        probe = self.scratch / f"probe.{new_token(8)}"
        probe.touch(mode=0o600)
        now = probe.stat().st_mtime
        probe.unlink()
        with os.scandir(self.scratch) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if now - entry.stat(follow_symlinks=False).st_mtime > LEFTOVER_IDLE_SECONDS:
                        Path(entry.path).unlink()


class Upload:
    """One blob on its way in: write, sync, publish; or discard."""

    def __init__(self, folder: Folder, key: str) -> None:
        self._folder = folder
        self._target = folder.path(key)
        self._scratch = folder.scratch / f"{scratch_prefix(key)}{new_token(8)}"
        self._descriptor: int | None = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append; the first call makes the temporary file."""
        if self._descriptor is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._descriptor = os.open(self._scratch, flags, 0o600)
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]

    def sync(self) -> None:
        """Bring the bytes to disk."""
        assert self._descriptor is not None, "nothing was written"
        os.fsync(self._descriptor)

    def publish(self) -> None:
        """Give the blob its name, at once and for good."""
        directory = self._target.parent
        try:
            self._folder.ensure_directory(directory)
            self._scratch.rename(self._target)
        except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
            raise InvalidKey("Of two keys one is a folder of the other.") from error
        except FileNotFoundError as error:
            raise StoreUnavailable("The upload was aborted while it was under way.") from error
        sync_directory(directory)
        self._close()

    def discard(self) -> None:
        """Leave nothing behind; harmless after `publish`."""
        self._close()
        with suppress(FileNotFoundError):
            self._scratch.unlink()

    def _close(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            os.close(descriptor)


class OpenFile:
    """A blob opened for reading; it can be read to its end even if it is deleted meanwhile."""

    __slots__ = ("_file", "_folder", "_path", "etag", "size_bytes")

    def __init__(self, folder: Folder, key: str) -> None:
        self._folder = folder
        self._path = folder.path(key)
        self._file: int | None = None
        self.size_bytes = 0
        self.etag = ""

    def open(self) -> None:
        """BlobMissing where there is no such blob."""
        try:
            self._file = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if isinstance(error, _NO_SUCH_BLOB) or error.errno == errno.ELOOP:
                self._folder.check_still_there()
                raise BlobMissing from error
            raise
        found = os.fstat(self._file)
        if not stat.S_ISREG(found.st_mode):
            raise BlobMissing
        self.size_bytes = found.st_size
        # Strong: a blob is never changed in place, and a new one under its key is a new file.
        self.etag = f'"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"'

    def read_held(self, start: int, stop: int) -> memoryview | None:
        """The bytes of `[start, stop)` if the system holds them in memory: never waits for a disk.
        None where it does not, or cannot tell.
        """
        assert self._file is not None, "not open"
        if not self._folder.tells_what_is_held:
            return None
        buffer = bytearray(stop - start)
        try:
            count = os.preadv(self._file, [buffer], start, os.RWF_NOWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
                self._folder.tells_what_is_held = False  # Not this file system, or not this kernel.
            return None
        # A part is no answer: Linux 5.9 and 5.10 answer 0 where they should refuse.
        return memoryview(buffer) if count == len(buffer) else None

    def read(self, start: int, stop: int) -> bytes:
        """The bytes of `[start, stop)`; fewer only where the blob ends."""
        assert self._file is not None, "not open"
        parts: list[bytes] = []
        while start < stop:
            part = os.pread(self._file, stop - start, start)
            if not part:
                break
            parts.append(part)
            start += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Harmless when it is not open."""
        if self._file is not None:
            descriptor, self._file = self._file, None
            os.close(descriptor)


def scratch_prefix(key: str) -> str:
    """How the temporary files of this key begin: of one length, whatever the key's."""
    return f"{hashlib.sha256(key.encode()).hexdigest()[:32]}."


def sync_directory(directory: Path) -> None:
    """Bring a directory's entries to disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network and user-space file systems cannot sync a directory and need not.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


_SENTENCES: Mapping[int, str] = {
    errno.ENOSPC: "The disk with the blobs is full.",
    errno.EDQUOT: "The disk quota for the blobs is used up.",
    errno.EFBIG: "The blob is larger than this file system takes.",
}


def failure_of(error: OSError) -> Failure:
    """An operating system error as the store's own; the path stays in the cause."""
    return StoreUnavailable(_SENTENCES.get(error.errno or 0), reason=_reason(error))


def _reason(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, type(error).__name__)


def _removed(path: str) -> DeleteOutcome | Exception:
    try:
        os.unlink(path)  # noqa: PTH108  see remove_many
    except _NO_SUCH_BLOB:
        return DeleteOutcome.ALREADY_GONE
    except PermissionError as error:
        # This blob's own trouble, which waiting does not end; not an outage of the store.
        return Unavailable("This blob may not be deleted.", reason=_reason(error))
    except OSError as error:
        return failure_of(error)
    return DeleteOutcome.DELETED


def _identity(directory: Path) -> tuple[int, int]:
    found = directory.stat()
    return found.st_dev, found.st_ino


def _info(key: str, found: os.stat_result) -> BlobInfo:
    modified_at = datetime.fromtimestamp(found.st_mtime, UTC)
    return BlobInfo(key=key, size_bytes=found.st_size, modified_at=modified_at)
