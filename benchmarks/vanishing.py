"""Blobs in a folder, and when each of them went, as the kernel tells whoever asks."""

from __future__ import annotations

import ctypes
import os
import select
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

BLOB_BYTES = 16 * 1024
_IN_DELETE = 0x200
_EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name behind it
_READ_BYTES = 1 << 20
_LOOK_MS = 100


def write_blobs(folder: Path, names: Iterable[str]) -> None:
    """A blob of 16 KiB by each name; the disk has settled when this returns."""
    folder.mkdir(parents=True, exist_ok=True)
    blob = bytes(BLOB_BYTES)
    for name in names:
        (folder / name).write_bytes(blob)
    os.sync()


@contextmanager
def vanishing(folder: Path) -> Iterator[dict[str, float]]:
    """For the time of the block: name to wall time of its deletion; grows while it is read."""
    gone: dict[str, float] = {}
    libc = ctypes.CDLL(None, use_errno=True)
    notify = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert notify >= 0, os.strerror(ctypes.get_errno())
    watch = libc.inotify_add_watch(notify, os.fsencode(folder), _IN_DELETE)
    assert watch >= 0, os.strerror(ctypes.get_errno())
    over = threading.Event()
    reader = threading.Thread(target=_read, args=(notify, gone, over))
    reader.start()
    try:
        yield gone
    finally:
        over.set()
        reader.join()
        os.close(notify)


def _read(notify: int, gone: dict[str, float], over: threading.Event) -> None:
    waiting = select.poll()
    waiting.register(notify, select.POLLIN)
    while not over.is_set():
        if not waiting.poll(_LOOK_MS):
            continue
        told = os.read(notify, _READ_BYTES)
        now = time.time()
        at = 0
        while at < len(told):
            watch, _mask, _cookie, length = _EVENT.unpack_from(told, at)
            assert watch >= 0, "the kernel dropped events"
            at += _EVENT.size
            gone.setdefault(told[at : at + length].rstrip(b"\0").decode(), now)
            at += length
