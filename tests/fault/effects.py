"""Counts what a process does to the world outside, and kills it at one of those effects.

An effect is a call that changes the store or signs a URL, or a statement that writes. They are seen
at the two ports alone (`DyingStore`, and a connection class for asyncpg), so nobody has to name
them: code that gains an effect gains its crash points. The end is a SIGKILL: no `finally` runs,
nothing is flushed, the kernel closes the sockets, and PostgreSQL drops the locks. What a crash test
could fake is not there to be faked.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg

from gateway.storage.timed import FullStore
from leases.ports import BlobInfo, DeleteOutcome, signing_end

# Above S3's smallest upload in parts, so that one is begun when the process dies in a put.
_TORN_BYTES = 17 << 20
_WRITES = re.compile(
    r"(append_events)|(?<!FOR )\b(INSERT INTO|UPDATE|DELETE FROM|MERGE INTO) (\w+)|\b(COMMIT)\b"
)


class Side(StrEnum):
    """Where at an effect: not begun, begun and torn, done and its answer there."""

    BEFORE = "before"
    MIDST = "in the midst of"
    AFTER = "after"


class Point(NamedTuple):
    """A crash point: the n-th effect, from 1."""

    number: int
    side: Side


class Effect(NamedTuple):
    """An effect that was seen; `tears` says whether it can be torn."""

    name: str
    tears: bool

    def sides(self) -> list[Side]:
        """Where it can be crashed at."""
        return [side for side in Side if self.tears or side is not Side.MIDST]


def written_by(sql: str) -> str | None:
    """What a statement writes, in a word; None when it only reads."""
    found = _WRITES.search(" ".join(sql.split()))
    if found is None:
        return None
    call, verb, table, commit = found.groups()
    return call or commit or f"{verb} {table}"


@dataclass(slots=True)
class Effects:
    """Counts from `armed` on; dies at `point`. `report` gets a line for every effect begun."""

    point: Point | None
    report: Path
    armed: bool = False
    count: int = field(default=0)

    def begin(self, name: str, *, tears: bool = False) -> int:
        """An effect is about to be made; answers its number (0: it does not count)."""
        if not self.armed:
            return 0
        self.count += 1
        with self.report.open("a") as report:
            report.write(f"{name}\t{int(tears)}\n")
        self.die_at(self.count, Side.BEFORE)
        return self.count

    def tears_at(self, number: int) -> bool:
        """Whether this is the effect to die in the midst of."""
        return bool(number) and self.point == (number, Side.MIDST)

    def die_at(self, number: int, side: Side) -> None:
        """The end, if this is the point."""
        if number and self.point == (number, side):
            self.die()

    def die(self) -> None:
        """The end."""
        os.kill(os.getpid(), signal.SIGKILL)

    async def around(self, name: str, call: Awaitable[Any]) -> Any:
        """One effect that cannot be torn."""
        number = self.begin(name)
        answer = await call
        self.die_at(number, Side.AFTER)
        return answer


def read_report(report: Path) -> list[Effect]:
    """The effects that a process began."""
    if not report.exists():
        return []
    lines = (line.split("\t") for line in report.read_text().splitlines())
    return [Effect(name, bool(int(tears))) for name, tears in lines]


class DyingStore:
    """One of our own stores, whose effects count."""

    def __init__(self, store: FullStore, effects: Effects) -> None:
        self._store = store
        self._effects = effects

    @property
    def supports_presign(self) -> bool:
        return self._store.supports_presign

    async def put(self, key: str, data: bytes | AsyncIterator[bytes]) -> None:
        number = self._effects.begin("put", tears=True)
        if self._effects.tears_at(number):
            data = self._torn(data)
        await self._store.put(key, data)
        self._effects.die_at(number, Side.AFTER)

    async def _torn(self, data: bytes | AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        if isinstance(data, bytes):
            yield data
        else:
            async for chunk in data:
                yield chunk
        yield bytes(_TORN_BYTES)
        self._effects.die()

    async def delete(self, key: str) -> DeleteOutcome | None:
        found: DeleteOutcome | None = await self._effects.around("delete", self._store.delete(key))
        return found

    async def delete_many(self, keys: Sequence[str]) -> Mapping[str, DeleteOutcome | Exception]:
        number = self._effects.begin("delete_many", tears=len(keys) > 1)
        if self._effects.tears_at(number):
            await self._store.delete_many(keys[: len(keys) // 2])
            self._effects.die()
        answers = await self._store.delete_many(keys)
        self._effects.die_at(number, Side.AFTER)
        return answers

    async def abort_uploads(self, key: str) -> int:
        count: int = await self._effects.around("abort", self._store.abort_uploads(key))
        return count

    async def presign_get(self, key: str, *, expires_in: int) -> str:
        signed = self._store.presign_get(key, expires_in=expires_in)
        url: str = await self._effects.around("presign", signed)
        return url

    async def presign_put(self, key: str, *, expires_in: int) -> str:
        signed = self._store.presign_put(key, expires_in=expires_in)
        url: str = await self._effects.around("presign", signed)
        return url

    async def get(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        return await self._store.get(key, start, stop)

    async def head(self, key: str) -> BlobInfo | None:
        return await self._store.head(key)

    async def list(self, prefix: str) -> AsyncIterator[BlobInfo]:
        async for blob in self._store.list(prefix):
            yield blob

    async def signing_ends_at(self) -> datetime | None:
        return await signing_end(self._store)


class _DyingProtocol:
    """asyncpg's protocol, whose writing statements count; all else passes."""

    def __init__(self, protocol: Any, effects: Effects) -> None:
        self._protocol = protocol
        self._effects = effects

    def __getattr__(self, name: str) -> Any:
        return getattr(self._protocol, name)

    async def query(self, query: str, *rest: Any, **named: Any) -> Any:
        return await self._run(query, self._protocol.query(query, *rest, **named))

    async def bind_execute(self, state: Any, *rest: Any, **named: Any) -> Any:
        call = self._protocol.bind_execute(state, *rest, **named)
        return await self._run(state.query, call)

    async def bind_execute_many(self, state: Any, *rest: Any, **named: Any) -> Any:
        call = self._protocol.bind_execute_many(state, *rest, **named)
        return await self._run(state.query, call)

    async def _run(self, sql: str, call: Awaitable[Any]) -> Any:
        name = written_by(sql)
        return await (call if name is None else self._effects.around(name, call))


def dying_connections(effects: Effects) -> type[asyncpg.Connection[Any]]:
    """A class of connections for asyncpg (`connection_class`) whose writes count."""

    class DyingConnection(asyncpg.Connection):
        def __init__(self, protocol: Any, *rest: Any) -> None:
            counted: Any = _DyingProtocol(protocol, effects)
            super().__init__(counted, *rest)

    return DyingConnection
