"""Commits as a pack tells them: checked when they come, decoded when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgpack

from gateway.client.errors import BadPack
from gateway.wire.ids import PREFIX, is_commit_id

Record = dict[str, Any]
_FORMS: tuple[tuple[str, type | tuple[type, ...]], ...] = (
    *((name, str) for name in ("commit_id", "snapshot_id", "message", "committed_at")),
    *((name, (str, type(None))) for name in ("parent_commit_id", "parent2_commit_id")),
    ("metadata", (dict, type(None))),
)


class Commits(Mapping[str, Record]):
    """The commits of a pack by their bare ids.

    They are kept as the bytes they came in: a record has a dozen keys that most readers never look
    at, and as a dict it takes three times the memory. Each asking decodes it anew. What they name
    is kept beside them, bare as well.
    """

    def __init__(self) -> None:
        self._kept: dict[str, bytes] = {}
        self.parent_ids: set[str] = set()
        self.snapshot_ids: set[str] = set()

    def __getitem__(self, commit_id: str) -> Record:
        record: Record = msgpack.unpackb(self._kept[commit_id], strict_map_key=False)
        return record

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, commit_id: object) -> bool:
        return commit_id in self._kept

    def add(self, record: object, raw: bytes) -> None:
        """A commit: its record, and the bytes that this was decoded from.

        Errors: BadPack when it is not what its id says.
        """
        if type(record) is not dict or not _has_forms(record):
            raise BadPack("A commit of the pack cannot be read.")
        commit_id: str = record["commit_id"].removeprefix(PREFIX)
        told = record.get("parent_commit_id"), record.get("parent2_commit_id")
        parent_ids = [parent_id for parent_id in told if parent_id]
        snapshot_id, message = record["snapshot_id"], record["message"]
        committed_at = record["committed_at"]
        # NUL stands between these when they are hashed: one inside could be read as another commit.
        if "\0" in "".join([*parent_ids, snapshot_id, message, committed_at]) or not is_commit_id(
            commit_id,
            parent_ids=parent_ids,
            snapshot_id=snapshot_id,
            message=message,
            committed_at=committed_at,
        ):
            raise BadPack(f"The commit {commit_id[:80]} is not what its id says.")
        self._kept[commit_id] = raw
        self.snapshot_ids.add(snapshot_id.removeprefix(PREFIX))
        self.parent_ids.update([parent_id.removeprefix(PREFIX) for parent_id in parent_ids])


def _has_forms(record: Record) -> bool:
    """Whether what a commit must be made of is there, and of its type."""
    return all([isinstance(record.get(name), form) for name, form in _FORMS])  # noqa: C419  faster
