"""A pushed commit: its record as it came, and what of it was checked."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from msgspec import Raw

from gateway.errors import Incomplete
from gateway.wire.body import decode_commit
from gateway.wire.ids import bare, is_commit_id
from gateway.wire.limits import WireLimits
from gateway.wire.messages import PushCommit
from gateway.wire.times import instant_of


@dataclass(frozen=True, slots=True, kw_only=True)
class SentCommit:
    """A commit of a bundle; every id bare, nothing recomputed yet."""

    commit_id: str
    parent_ids: tuple[str, ...]
    snapshot_id: str
    fields: PushCommit
    record: Raw

    @property
    def branch(self) -> str:
        """The branch in the record, which may be another one than the branch pushed to."""
        return self.fields.branch or ""

    @property
    def message(self) -> str:
        return self.fields.message

    @property
    def author(self) -> str:
        return self.fields.author or ""

    def verified(self) -> datetime:
        """Recompute the commit's id; answers when it was committed.

        Errors: Incomplete (422) naming the commit.
        """
        right = is_commit_id(
            self.commit_id,
            parent_ids=self.fields.parent_ids,
            snapshot_id=self.fields.snapshot_id,
            message=self.fields.message,
            committed_at=self.fields.committed_at,
        )
        if not right:
            raise Incomplete(
                f"Commit {self.commit_id} does not recompute to its id.", commit_id=self.commit_id
            )
        return instant_of(self.fields.committed_at, what=f"committed_at of commit {self.commit_id}")


def read_commit(record: Raw, *, limits: WireLimits) -> SentCommit:
    """The commit in a record, its ids made bare.

    Errors: InvalidRequest and its kinds, as `decode_commit` and `bare` raise them.
    """
    fields = decode_commit(record, limits=limits)
    # A commit may name the same parent twice; in the graph it is one edge.
    parent_ids = tuple(dict.fromkeys(bare(text) for text in fields.parent_ids))
    return SentCommit(
        commit_id=bare(fields.commit_id),
        parent_ids=parent_ids,
        snapshot_id=bare(fields.snapshot_id),
        fields=fields,
        record=record,
    )
