"""Commits and snapshots as a pack holds them.

A commit that came by a push is its record, byte for byte. For one that other code wrote, which has
no record, one is made of the columns.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec
from sqlalchemy import text

from gateway.errors import IncompleteRepo
from gateway.off_loop import off_loop
from gateway.packs.commit_rows import rows_of
from gateway.packs.delta_rows import SnapshotChange, iterate_changes
from gateway.packs.manifest_rows import iterate_manifests
from gateway.packs.transaction import Reader
from gateway.wire.commit_record import unfilled_fields
from gateway.wire.ids import PREFIX, IdForm, is_commit_id

# A record is a few hundred bytes, so a batch is some hundred KiB.
_COMMITS_PER_BATCH = 500
_SNAPSHOTS_PER_BATCH = 5000
INLINE_ENTRIES = 10_000  # About 5 ms of work; larger manifests are gone through in a thread.

_COMMITS = text(
    """
SELECT commit_id, record, branch, parent_ids, message, author, timestamp, snapshot_id
  FROM commits WHERE commit_id = ANY(CAST(:ids AS text[]))"""
)
_SNAPSHOTS = text(
    "SELECT snapshot_id, created_at FROM snapshots WHERE snapshot_id = ANY(CAST(:ids AS text[]))"
)
_ENCODER = msgspec.msgpack.Encoder()


async def commit_records(
    reader: Reader, repo_id: str, ids: Sequence[str], *, form: IdForm
) -> AsyncIterator[bytes]:
    """The msgpack record of each commit, in the order of the ids.

    Errors: IncompleteRepo when a commit's row is missing.
    """
    for start in range(0, len(ids), _COMMITS_PER_BATCH):
        batch = ids[start : start + _COMMITS_PER_BATCH]
        rows = {row.commit_id: row for row in await rows_of(reader, _COMMITS, ids=batch)}
        _check_complete(repo_id, batch, rows)
        for commit_id in batch:
            row = rows[commit_id]
            yield bytes(row.record or _ENCODER.encode(rebuilt_record(row, repo_id, form)))


async def snapshots_in_order(
    reader: Reader, repo_id: str, ids: Sequence[str], *, form: IdForm
) -> AsyncIterator[tuple[bytes, Mapping[str, str]]]:
    """The msgpack entry of each snapshot and its manifest with bare ids, in the order of the ids.

    Errors: IncompleteRepo when a snapshot is missing; Corrupt when its delta has no base.
    """
    for start in range(0, len(ids), _SNAPSHOTS_PER_BATCH):
        batch = ids[start : start + _SNAPSHOTS_PER_BATCH]
        created = {
            row.snapshot_id: row.created_at for row in await rows_of(reader, _SNAPSHOTS, ids=batch)
        }
        _check_complete(repo_id, batch, created)
        async for snapshot_id, manifest in iterate_manifests(reader, batch):
            head = {
                "snapshot_id": form.write(snapshot_id),
                "created_at": created[snapshot_id].astimezone(UTC).isoformat(),
            }
            encode = partial(_snapshot_entry, head, manifest, form)
            yield await off_loop(encode, much=len(manifest) > INLINE_ENTRIES), manifest


async def changes_in_order(
    reader: Reader, repo_id: str, ids: Sequence[str], *, bases: Mapping[str, str], form: IdForm
) -> AsyncIterator[tuple[bytes, Mapping[str, str]]]:
    """As `snapshots_in_order`, but each entry tells what changes on its base, where it has one.

    The map that comes with it holds the changed paths alone: every object that no earlier snapshot
    of the pack holds is among them.
    """
    missing = set(ids)
    async for change in iterate_changes(reader, ids, bases):
        missing.discard(change.snapshot_id)
        encode = partial(_change_entry, change, form)
        yield await off_loop(encode, much=len(change.changes) > INLINE_ENTRIES), change.brought
    if missing:
        raise IncompleteRepo(repo_id=repo_id, missing=sorted(missing))


def _change_entry(change: SnapshotChange, form: IdForm) -> bytes:
    written = {
        path: None if object_id is None else form.write(object_id)
        for path, object_id in sorted(change.changes.items())
    }
    entry: dict[str, object] = {"snapshot_id": form.write(change.snapshot_id)}
    if change.base_snapshot_id is None:
        entry["manifest"] = written
    else:
        entry |= {"base_snapshot_id": form.write(change.base_snapshot_id), "delta": written}
    entry["created_at"] = change.created_at.astimezone(UTC).isoformat()
    return _ENCODER.encode(entry)


def _snapshot_entry(head: Mapping[str, str], manifest: Mapping[str, str], form: IdForm) -> bytes:
    """Paths are sorted: a manifest resolved from deltas may hold them in any order."""
    entry = {
        "snapshot_id": head["snapshot_id"],
        "manifest": {path: form.write(manifest[path]) for path in sorted(manifest)},
        "created_at": head["created_at"],
    }
    return _ENCODER.encode(entry)


def rebuilt_record(row: Any, repo_id: str, form: IdForm) -> dict[str, Any]:
    """A commit's record out of its columns, with every key that clients know."""
    parent_ids = [parent.removeprefix(PREFIX) for parent in row.parent_ids]
    snapshot_id = (row.snapshot_id or "").removeprefix(PREFIX)
    written = [form.write(parent) for parent in parent_ids]
    return {
        "commit_id": form.write(row.commit_id),
        "repo_id": repo_id,
        "branch": row.branch,
        "snapshot_id": form.write(snapshot_id) if snapshot_id else "",
        "message": row.message,
        "committed_at": _committed_at(row, parent_ids, snapshot_id),
        "parent_commit_id": written[0] if written else None,
        "parent2_commit_id": written[1] if len(written) > 1 else None,
        "author": row.author,
        "metadata": {},
        **unfilled_fields(),
    }


def _committed_at(row: Any, parent_ids: Sequence[str], snapshot_id: str) -> str:
    """The time as its author wrote it: the first form with which the commit's id recomputes."""
    forms = list(_time_forms(row.timestamp))
    for committed_at in forms:
        right = is_commit_id(
            row.commit_id,
            parent_ids=parent_ids,
            snapshot_id=snapshot_id,
            message=row.message,
            committed_at=committed_at,
        )
        if right:
            return committed_at
    return forms[0]


def _time_forms(moment: datetime) -> Iterator[str]:
    moment = moment.astimezone(UTC).replace(tzinfo=None)
    for separator in ("T", " "):
        for timespec in ("auto", "seconds", "milliseconds", "microseconds"):
            for offset in ("+00:00", "Z", ""):
                yield moment.isoformat(separator, timespec) + offset


def _check_complete(repo_id: str, ids: Sequence[str], rows: Mapping[str, Any]) -> None:
    if missing := [one for one in ids if one not in rows]:
        raise IncompleteRepo(repo_id=repo_id, missing=missing)
