"""Pushing a history: which commits, in which chunks, and the objects before them.

A pushed chunk must be closed (every parent in it or known already) and have exactly one tip, or
the gateway cannot tell what the branch moves to. So the chunks follow the head's first parents,
oldest first, and each of those commits brings the ancestors that have not been sent yet. Every
chunk is a fast-forward of the one before: a push that breaks off goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, NotRequired, Protocol, TypedDict

import msgpack

from gateway.client.conversations import filter_objects, refs
from gateway.client.errors import Diverged, Missing
from gateway.client.exchange import (
    CALLS_AT_ONCE_MAX,
    Address,
    Conversation,
    Request,
    ask,
    ask_all,
    text_of,
)
from gateway.portions import portions

OBJECTS_PER_CALL_MAX = 400  # The Muse client's number (WIRE.md).
OBJECT_BYTES_PER_CALL = 8 * 1024 * 1024  # One larger object goes alone.
COMMIT_BYTES_PER_CALL = 16 * 1024 * 1024  # One merge with a longer side branch goes whole.
COMMITS_PER_CALL_MAX = 2000

Record = Mapping[str, Any]
Parents = Mapping[str, tuple[str, ...]]


class History(Protocol):
    """What push reads. Everything but the graph is read when it is needed, and let go.

    `parents` maps every commit id, parents before children, to the parents that are in it too.
    """

    @property
    def head(self) -> str: ...

    @property
    def parents(self) -> Parents: ...

    def read(self, commit_id: str) -> tuple[Record, Record]:
        """The commit's record and its snapshot's."""
        ...

    def content(self, object_id: str) -> bytes:
        """The bytes of an object that a snapshot named."""
        ...


class ObjectEntry(TypedDict):
    """One object on its way in; the path is a hint for the order in later packs."""

    object_id: str
    content: bytes
    path: NotRequired[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a push has come; the counts are of what was sent so far."""

    commits: int
    commits_total: int
    objects: int
    object_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """What a push did."""

    head: str
    branch_heads: Mapping[str, str]
    commits: int
    objects: int
    object_bytes: int
    up_to_date: bool


def push(
    address: Address,
    history: History,
    *,
    branch: str,
    force: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Conversation[Pushed]:
    """Send what the repository lacks of this history and move the branch to its head."""
    heads = yield from _heads(address)
    known = ancestors(history.parents, heads.values())
    _refuse_diverged(history, heads.get(branch), force=force)
    if heads.get(branch) == history.head:
        return Pushed(
            head=history.head,
            branch_heads=heads,
            commits=0,
            objects=0,
            object_bytes=0,
            up_to_date=True,
        )
    sender = _Sender(address, history, known, branch=branch, force=force)
    for chunk in commit_chunks(history, known):
        heads = yield from sender.send(chunk)
        if progress is not None:
            progress(sender.progress())
    done = sender.progress()
    return Pushed(
        head=history.head,
        branch_heads=heads,
        commits=done.commits,
        objects=done.objects,
        object_bytes=done.object_bytes,
        up_to_date=False,
    )


def _heads(address: Address) -> Conversation[dict[str, str]]:
    """The heads as the history writes ids; a repository that is not there yet has none."""
    try:
        answer = yield from refs(address)
    except Missing:
        return {}
    return {name: head.removeprefix("sha256:") for name, head in answer.branch_heads.items()}


def _refuse_diverged(history: History, remote_head: str | None, *, force: bool) -> None:
    """Say so before the first byte is sent; the gateway says it again if it happens meanwhile."""
    if force or remote_head is None:
        return
    if remote_head not in ancestors(history.parents, [history.head]):
        raise Diverged(remote_head=remote_head)


class _Sender:
    """What has been sent in this push, so that nothing goes twice."""

    def __init__(
        self, address: Address, history: History, known: set[str], *, branch: str, force: bool
    ) -> None:
        self._address, self._history = address, history
        self._branch, self._force = branch, force
        self._known = known
        self._objects_settled: set[str] = set()
        self._commits_total = len(history.parents) - len(known)
        self._commits = self._objects = self._object_bytes = 0

    def send(self, chunk: CommitChunk) -> Conversation[dict[str, str]]:
        """The chunk's objects, then its commits; the heads afterwards."""
        fresh = [oid for oid in chunk.objects if oid not in self._objects_settled]
        lacking = yield from self._lacking(fresh)
        # The manifests' order puts neighbours into one segment, which compresses and reads well.
        entries = (
            ObjectEntry(object_id=oid, content=self._history.content(oid), path=chunk.objects[oid])
            for oid in fresh
            if oid in lacking
        )
        for group in _at_once(object_chunks(entries)):
            yield from push_objects(self._address, group)
            self._objects += sum(len(batch) for batch in group)
            self._object_bytes += sum(len(entry["content"]) for batch in group for entry in batch)
        self._objects_settled.update(fresh)
        answer = yield from ask(self._address, self._request(chunk))
        self._commits += len(chunk.commits)
        told = answer.get("branch_heads") or {}
        return {str(k): str(v).removeprefix("sha256:") for k, v in dict(told).items()}

    def _lacking(self, object_ids: list[str]) -> Conversation[set[str]]:
        """Those the repository lacks; one that is not there yet lacks them all."""
        if not object_ids:
            return set()
        try:
            missing = yield from filter_objects(self._address, sorted(object_ids))
        except Missing:
            return set(object_ids)
        return set(missing)

    def progress(self) -> Progress:
        """The counts so far."""
        return Progress(
            commits=self._commits,
            commits_total=max(self._commits_total, self._commits),
            objects=self._objects,
            object_bytes=self._object_bytes,
        )

    def _request(self, chunk: CommitChunk) -> Request:
        bundle = {"commits": chunk.commits, "snapshots": chunk.snapshots, "objects": []}
        body = {"bundle": bundle, "branch": self._branch, "force": self._force}
        return Request(method="POST", path="/push", doing="pushing commits", body=body)


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitChunk:
    """Commits that go in one push, oldest first, with the snapshots they name."""

    commits: list[Record]
    snapshots: list[Record]
    objects: Mapping[str, str]  # Each object's id and one path of it.

    @property
    def tip(self) -> str:
        """The commit the branch moves to."""
        return text_of(self.commits[-1], "commit_id")


def commit_chunks(
    history: History, known: set[str], *, bytes_max: int = COMMIT_BYTES_PER_CALL
) -> Iterator[CommitChunk]:
    """The closed chunks of what is not known, oldest first; the last one's tip is the head.

    A head that is known already makes one chunk of itself: the branch is still to be moved.
    """
    building = _Building()
    empty = True
    for group in closed_groups(history.parents, history.head, known):
        empty = False
        addition = _Building()
        for commit_id in group:
            addition.add(*history.read(commit_id), already=building.snapshot_ids)
        full = building.size + addition.size > bytes_max
        many = len(building.commits) + len(addition.commits) > COMMITS_PER_CALL_MAX
        if building.commits and (full or many):
            yield building.chunk()
            building = _Building()
            addition = _Building()
            for commit_id in group:
                addition.add(*history.read(commit_id), already=set())
        building.join(addition)
    if empty:
        building.add(*history.read(history.head), already=set())
    yield building.chunk()


class _Building:
    """A chunk that still grows."""

    def __init__(self) -> None:
        self.commits: list[Record] = []
        self.snapshots: list[Record] = []
        self.snapshot_ids: set[str] = set()
        self.objects: dict[str, str] = {}
        self.size = 0

    def add(self, commit: Record, snapshot: Record, *, already: set[str]) -> None:
        """One more commit; its snapshot unless the chunk has it."""
        self.commits.append(commit)
        self.size += len(msgpack.packb(commit))
        snapshot_id = text_of(snapshot, "snapshot_id")
        if snapshot_id in already or snapshot_id in self.snapshot_ids:
            return
        self.snapshot_ids.add(snapshot_id)
        self.snapshots.append(snapshot)
        self.size += len(msgpack.packb(snapshot))
        for path, object_id in snapshot["manifest"].items():
            self.objects.setdefault(object_id, path)

    def join(self, other: _Building) -> None:
        """Take over another chunk's commits behind our own."""
        self.commits += other.commits
        self.snapshots += other.snapshots
        self.snapshot_ids |= other.snapshot_ids
        self.objects = {**other.objects, **self.objects}
        self.size += other.size

    def chunk(self) -> CommitChunk:
        """The finished chunk."""
        return CommitChunk(commits=self.commits, snapshots=self.snapshots, objects=self.objects)


def closed_groups(parents: Parents, head: str, known: set[str]) -> Iterator[list[str]]:
    """For every unknown commit on the head's first-parent chain, oldest first: what it brings.

    Each group ends with that commit and holds its ancestors that came in no earlier group.
    """
    chain = []
    commit_id: str | None = head
    while commit_id is not None and commit_id not in known:
        chain.append(commit_id)
        commit_id = next(iter(parents[commit_id]), None)
    done = set(known)
    for tip in reversed(chain):
        yield _unsent_ancestors(parents, tip, done)


def _unsent_ancestors(parents: Parents, tip: str, done: set[str]) -> list[str]:
    """The tip and its ancestors that are not done, parents first; they are done afterwards."""
    order: list[str] = []
    stack = [(tip, iter(parents[tip]))]
    seen = {tip}
    while stack:
        commit_id, rest = stack[-1]
        nearest = next((p for p in rest if p not in done and p not in seen), None)
        if nearest is not None:
            seen.add(nearest)
            stack.append((nearest, iter(parents[nearest])))
            continue
        stack.pop()
        order.append(commit_id)
    done.update(order)
    return order


def ancestors(parents: Parents, heads: Iterable[str]) -> set[str]:
    """The commits of this graph that these heads reach, themselves included."""
    waiting = [head for head in heads if head in parents]
    found = set(waiting)
    while waiting:
        for parent in parents[waiting.pop()]:
            if parent not in found:
                found.add(parent)
                waiting.append(parent)
    return found


def push_objects(address: Address, chunks: Iterable[list[ObjectEntry]]) -> Conversation[int]:
    """Send chunks of objects side by side; how many the gateway had not known."""
    requests = [
        Request(
            method="POST",
            path="/push/objects",
            doing="sending objects",
            body={"objects": chunk},
        )
        for chunk in chunks
    ]
    answers = yield from ask_all(address, requests)
    stored = [answer.get("stored") for answer in answers]
    return sum(count for count in stored if isinstance(count, int))


def object_chunks(entries: Iterable[ObjectEntry]) -> Iterator[list[ObjectEntry]]:
    """Objects in the given order, at most 400 and about 8 MiB a chunk."""
    return portions(
        entries,
        weight=lambda entry: len(entry["content"]),
        weight_max=OBJECT_BYTES_PER_CALL,
        count_max=OBJECTS_PER_CALL_MAX,
    )


def _at_once(chunks: Iterator[list[ObjectEntry]]) -> Iterator[list[list[ObjectEntry]]]:
    """The chunks, as many at a time as may travel side by side; no more of them are held."""
    while group := list(islice(chunks, CALLS_AT_ONCE_MAX)):
        yield group


def send_objects(address: Address, objects: Mapping[str, bytes]) -> Conversation[int]:
    """Send these objects in chunks; how many the gateway had not known."""
    stored = 0
    entries = (ObjectEntry(object_id=oid, content=objects[oid]) for oid in objects)
    for group in _at_once(object_chunks(entries)):
        stored += yield from push_objects(address, group)
    return stored
