"""The other side of the client's conversations: they do no I/O, so neither do these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgpack

from gateway.client.exchange import Address, Call, Conversation, Pause
from tests.factories import History

T = TypeVar("T")
ADDRESS = Address("http://gateway.test/ada/project")


class SentHistory:
    """A made history as the client pushes it."""

    def __init__(self, made: History) -> None:
        self._made = made
        self.parents = {commit_id: commit.parent_ids for commit_id, commit in made.commits.items()}
        self.head = made.head.commit_id

    def read(self, commit_id: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        commit = self._made.commits[commit_id]
        return commit.record, self._made.snapshot(commit.snapshot_id, commit.manifest)

    def content(self, object_id: str) -> bytes:
        return self._made.contents[object_id]


def run(conversation: Conversation[T], other_side: Any) -> T:
    """Carry a conversation out against something with `answer(call)` and `pauses`."""
    try:
        while True:
            effect = next(conversation)
            if isinstance(effect, Pause):
                other_side.pauses.append(effect.seconds)
                continue
            other_side.at_once_max = max(other_side.at_once_max, len(effect))
            for call in effect:
                other_side.answer(call)
    except StopIteration as stop:
        value: T = stop.value
        return value
    finally:
        conversation.close()


def reply(call: Call, status: int, body: Mapping[str, Any]) -> None:
    """A whole msgpack answer."""
    call.sink.begin(status, {"content-type": "application/x-msgpack"})
    call.sink.feed(msgpack.packb(body))


class RecordedGateway:
    """Answers pushes as the gateway does, and remembers what it was asked."""

    def __init__(
        self,
        *,
        heads: Mapping[str, str] | None = None,
        missing: set[str] | None = None,
        refusals: Mapping[str, tuple[int, Mapping[str, Any]]] | None = None,
    ) -> None:
        self.heads = dict(heads or {})
        self.missing = set(missing or ())
        self.refusals = dict(refusals or {})
        self.paths: list[str] = []
        self.pushes: list[dict[str, Any]] = []
        self.pauses: list[float] = []
        self.at_once_max = 0

    def answer(self, call: Call) -> None:
        """Answer one call."""
        assert call.url.startswith(ADDRESS.url)
        path = call.url.removeprefix(ADDRESS.url)
        self.paths.append(path)
        body = {} if call.body is None else msgpack.unpackb(call.body)
        if path in self.refusals:
            reply(call, *self.refusals[path])
            return
        reply(call, 200, self._answer(path, body))

    def _answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path == "/refs":
            return {"repo_id": "r", "domain": "code", "branch_heads": self.heads}
        if path == "/filter-objects":
            return {"missing": [oid for oid in body["object_ids"] if oid in self.missing]}
        if path == "/push/objects":
            self.missing -= {entry["object_id"] for entry in body["objects"]}
            return {"stored": len(body["objects"]), "skipped": 0}
        assert path == "/push"
        self.pushes.append(body)
        self.heads[body["branch"]] = body["bundle"]["commits"][-1]["commit_id"]
        return {"ok": True, "branch_heads": self.heads}
