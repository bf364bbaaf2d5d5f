"""Building a pack takes the same memory however large the pack is."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgpack
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.wire.messages import PushObject
from tests.factories import History
from tests.fakes import MemoryStore
from tests.integration.fetching import CALLER, bench_on
from tests.integration.gateways import bundle_of, serving, settings_for

GROWTH_BYTES_MAX = 128 << 20
PACK_BYTES = 256 << 20
OBJECT_BYTES = 64 << 10
OBJECTS_PER_CHUNK = 400


class FolderStore(MemoryStore):
    """As `MemoryStore`, with the blobs in files."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    async def put(self, key: str, data: bytes | AsyncIterator[bytes]) -> None:
        path = self._path(key)
        with await asyncio.to_thread(path.open, "wb") as file:
            if isinstance(data, bytes):
                await asyncio.to_thread(file.write, data)
            else:
                async for chunk in data:
                    await asyncio.to_thread(file.write, chunk)

    async def get(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        def read() -> bytes:
            with self._path(key).open("rb") as file:
                file.seek(start or 0)
                return file.read(-1 if stop is None else stop - (start or 0))

        return await asyncio.to_thread(read)

    async def delete(self, key: str) -> None:
        await asyncio.to_thread(self._path(key).unlink, missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._folder / key.replace("/", "~")


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@contextmanager
def watched() -> Iterator[list[int]]:
    """The most memory seen while the block runs."""
    most = [resident_bytes()]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            most[0] = max(most[0], resident_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        done.set()
        thread.join()


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_large_pack_is_never_held_in_memory(engine: AsyncEngine, tmp_path: Path) -> None:
    async with bench_on(engine, store=FolderStore(tmp_path)) as bench:
        repo = await bench.gate.repo()
        history = History()
        ids: list[str] = []
        count = PACK_BYTES // OBJECT_BYTES
        for start in range(0, count, OBJECTS_PER_CHUNK):
            numbers = range(start, min(start + OBJECTS_PER_CHUNK, count))
            contents = [number.to_bytes(8, "big") * (OBJECT_BYTES // 8) for number in numbers]
            ids += [history.content(content) for content in contents]
            objects = [
                PushObject(object_id=object_id, content=history.contents.pop(object_id))
                for object_id in ids[start:]
            ]
            await bench.gate.segments.store(repo.repo_id, objects, CALLER)
        # Neighbours in the pack lie far apart in the segments.
        paths = {f"{number % 997:04}/{number}": one for number, one in enumerate(ids)}
        head = history.commit(paths)
        await bench.gate.push(repo, history.bundle())
        before = resident_bytes()
        with watched() as most:
            answer = await bench.fetch(repo.repo_id, [head.commit_id])
        assert answer["size_bytes"] > PACK_BYTES
        assert most[0] - before <= GROWTH_BYTES_MAX


_CLONES = 16
_CLONED_BYTES = 48 << 20
# Two ranges of 4 MiB for each caller, and as much again for the sockets.
_CLONES_GROWTH_BYTES_MAX = 256 << 20


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_clones_at_once_are_one_build_and_hold_no_pack_each(
    database_url: str, tmp_path: Path
) -> None:
    async with serving(settings_for(database_url, tmp_path)) as gateway:
        history = History()
        for number in range(_CLONED_BYTES // (4 << 20)):
            history.content(number.to_bytes(8, "big") * (4 << 17))
        repo_id = await gateway.repo("o/r")
        objects = [PushObject(**item) for item in history.objects()]
        await gateway.service.segments.store(repo_id, objects, CALLER)
        history.commit({str(number): one for number, one in enumerate(history.contents)})
        history.contents.clear()
        token = await gateway.token("push")
        body = {"bundle": bundle_of(history), "branch": "main"}
        assert (await gateway.call("POST", "/o/r/push", body, token=token)).status == 200
        del objects, body
        want = msgpack.packb({"want": [history.head.commit_id], "have": []})

        async def clone() -> tuple[int, str]:
            digest, size_bytes = hashlib.sha256(), 0
            async with gateway.http.stream(
                "POST", f"{gateway.url}/o/r/fetch", content=want, timeout=120
            ) as answer:
                assert answer.status_code == 200
                async for chunk in answer.aiter_raw():
                    size_bytes += len(chunk)
                    digest.update(chunk)
            return size_bytes, digest.hexdigest()

        before = resident_bytes()
        with watched() as most:
            answers = await asyncio.gather(*(clone() for _ in range(_CLONES)))
        assert len(set(answers)) == 1
        assert answers[0][0] > _CLONED_BYTES
        assert most[0] - before <= _CLONES_GROWTH_BYTES_MAX
        row = await gateway.service.database.row("SELECT count(*) AS n FROM mpack_leases")
        assert row["n"] == 1
