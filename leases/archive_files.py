"""The files of an archive: written beside their names, read back, named when they are proven."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID

from leases.chain import link_hash, microseconds
from leases.codec import dump
from leases.errors import LogCorrupt

_PARTIAL = ".part"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A partition: its positions, the hash in front of it and its last one, when it ended."""

    name: str
    first_position: int
    last_position: int
    previous_hash: str
    hash: str
    ended_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file of an archive, as it was read back."""

    name: str
    sha256: str
    size_bytes: int
    lines: int


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """The folder is made, and this run's alone for the time of the block.

    Two runs would write into one partial file. The kernel ends the hold of a process that dies.
    Errors: OSError, BlockingIOError when another run holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(errno.EAGAIN, "another archive is written there") from error
        yield
    finally:
        os.close(descriptor)


async def write_file(
    path: Path, pages: AsyncIterator[list[str]], prove: Callable[[Path], File]
) -> File:
    """A file that is whole and proven under its name, or as it was before."""
    partial = path.with_name(path.name + _PARTIAL)
    with partial.open("w", encoding="utf-8") as file:
        async for lines in pages:
            await asyncio.to_thread(file.writelines, lines)
        # Else what the buffer holds still would not be on the disk.
        await asyncio.to_thread(file.flush)
        await asyncio.to_thread(_sync, file.fileno())
    proven = await asyncio.to_thread(prove, partial)
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        await asyncio.to_thread(_sync, folder)
    finally:
        os.close(folder)
    return proven


def _sync(descriptor: int) -> None:
    os.fsync(descriptor)


def read_back(path: Path, take: Callable[[str], None] = lambda _line: None) -> File:
    """What a file holds; `take` is given each line of it. Errors: OSError, and those of `take`."""
    digest, size, lines = sha256(), 0, 0
    with path.open("rb") as file:
        for raw in file:
            digest.update(raw)
            size, lines = size + len(raw), lines + 1
            take(raw.decode())
    name = path.name.removesuffix(_PARTIAL)
    return File(name=name, sha256=digest.hexdigest(), size_bytes=size, lines=lines)


class Begun:
    """Proves a part's events, and then that every lease which began in them is there, too."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._leases = 0

    def proven(self, path: Path) -> File:
        """The events' file, if its own text gives every hash, from the first position to the last.

        Errors: LogCorrupt.
        """
        part = self._part
        previous, position = bytes.fromhex(part.previous_hash), part.first_position - 1

        def take(line: str) -> None:
            nonlocal previous, position
            event = json.loads(line)
            previous, position = link_hash(previous, _fields(event)), position + 1
            if event["position"] != position or event["hash"] != previous.hex():
                raise LogCorrupt("The archive does not prove itself.", position=event["position"])
            self._leases += event["stream"].startswith("lease/") and event["version"] == 1

        file = read_back(path, take)
        if (position, previous.hex()) != (part.last_position, part.hash):
            raise LogCorrupt("The archive does not reach its end.", position=position)
        return file

    def complete(self, path: Path) -> File:
        """The leases' file, a line for each. Errors: LogCorrupt."""
        file = read_back(path)
        if file.lines != self._leases:
            raise LogCorrupt(
                "A lease has no row, so it cannot be archived: run audit rebuild.",
                position=self._part.last_position,
            )
        return file


def _fields(event: dict[str, Any]) -> tuple[bytes | str | int | None, ...]:
    return (
        event["position"],
        UUID(event["event_id"]).bytes,
        event["stream"],
        event["version"],
        event["type"],
        event["schema_version"],
        sha256(dump(event["data"]).encode()).digest(),
        event["actor"],
        event["request_id"],
        microseconds(datetime.fromisoformat(event["recorded_at"])),
    )
