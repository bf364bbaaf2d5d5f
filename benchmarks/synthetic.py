"""A made history: 200 files of 8 KiB, one of them changed by each commit.

With 500 commits it is the set that the protocol's public server was measured with: 699 objects, and
every snapshot names all 200 files. The contents are random, so nothing of them compresses.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from benchmarks.place import CALLER, Home, serving
from gateway.packs.repos import Repo
from gateway.service import Service
from gateway.wire.body import decode
from gateway.wire.messages import PushObject, PushRequest
from tests.factories import EPOCH, History, MadeCommit, push_body

FILES = 200
FILE_BYTES = 8192
COMMITS = 500
OBJECTS_PER_CALL = 400  # As the Muse client sends them.
_COMMITS_PER_PUSH = 2000  # 34 MB of manifests.


class Line:
    """A branch that grows; of what was made only the head and the commits' ids are kept."""

    def __init__(self, seed: str) -> None:
        self._chance = random.Random(seed)
        self._head: MadeCommit | None = None
        self.commit_ids: list[str] = []

    def grow(self, commits: int) -> History:
        """The next commits, with the contents that they bring."""
        history = History()
        for _ in range(commits):
            made = history.commit(
                self._manifest(history),
                parents=[self._head] if self._head else [],
                message=f"commit {len(self.commit_ids)}",
                committed_at=(EPOCH + timedelta(seconds=len(self.commit_ids))).isoformat(),
            )
            self._head = made
            self.commit_ids.append(made.commit_id)
        return history

    def _manifest(self, history: History) -> dict[str, str]:
        chance = self._chance
        if self._head is None:
            paths = [f"src/file-{number:03}.bin" for number in range(FILES)]
            return {path: history.content(chance.randbytes(FILE_BYTES)) for path in paths}
        path = f"src/file-{chance.randrange(FILES):03}.bin"
        return {**self._head.manifest, path: history.content(chance.randbytes(FILE_BYTES))}


def object_chunks(history: History) -> Iterator[list[dict[str, Any]]]:
    """The history's contents, as many at a time as a client sends."""
    objects = history.objects()
    for start in range(0, len(objects), OBJECTS_PER_CALL):
        yield objects[start : start + OBJECTS_PER_CALL]


async def push_line(home: Home, slug: str, commits: int) -> list[str]:
    """Make a public repo `bench/<slug>` of so many commits; their ids, oldest first."""
    line = Line(slug)
    async with serving(home, watch=False) as service:
        await push_on(service, line, slug, commits=commits)
    return line.commit_ids


async def push_on(service: Service, line: Line, slug: str, *, commits: int) -> Repo:
    """Push the line's next commits into the public repo `bench/<slug>`."""
    repo = await service.repos.ensure(owner="bench", slug=slug, visibility="public", caller=CALLER)
    while commits:
        history = line.grow(min(_COMMITS_PER_PUSH, commits))
        commits -= len(history.commits)
        for chunk in object_chunks(history):
            objects = [PushObject(**entry) for entry in chunk]
            await service.segments.store(repo.repo_id, objects, CALLER)
        body = push_body(history.bundle())
        request = decode(body, PushRequest, limits=service.settings.wire)
        await service.pushes.push(repo, request, CALLER)
    return repo
