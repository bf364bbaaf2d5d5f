"""Snapshots as changes on an earlier one of the same pack, read in few statements.

Where the stored delta stands on the very base that the pack's order names, it is taken as it is and
no manifest is put together at all; that is nearly every snapshot of a history. The rest (a chain
that was ended with a whole manifest, content that another repo pushed on another base) is worked
out from both manifests. Which base, and whether a change is small enough, depends on content alone:
equal requests give equal bytes, however their manifests happen to be stored.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text

from gateway.packs.commit_rows import rows_of
from gateway.packs.manifest import DELTA_SHARE_MAX, Delta, Manifest, decode_delta, delta_between
from gateway.packs.manifest_rows import ENTRIES_PER_BATCH_MAX, resolve_manifests
from gateway.packs.transaction import Reader

_SNAPSHOTS_PER_BATCH_MAX = 5000
_DELTA_BYTES_PER_BATCH_MAX = 16 * 1024 * 1024

# The length of a value stored out of line is read from its head, not from its pieces.
_HEADS = text(
    """
SELECT snapshot_id, created_at, entry_count,
       replace(base_snapshot_id, 'sha256:', '') AS base_snapshot_id,
       CASE WHEN manifest_blob IS NULL THEN octet_length(delta_blob) END AS delta_bytes
  FROM snapshots WHERE snapshot_id = ANY(CAST(:ids AS text[]))"""
)
_DELTAS = text(
    "SELECT snapshot_id, delta_blob FROM snapshots WHERE snapshot_id = ANY(CAST(:ids AS text[]))"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotChange:
    """One snapshot of a pack: what it changes on its base, or, without a base, its manifest."""

    snapshot_id: str
    created_at: datetime
    base_snapshot_id: str | None
    changes: Mapping[str, str | None]

    @property
    def brought(self) -> dict[str, str]:
        """The changed paths that hold something: all objects that its base has not are there."""
        return {path: one for path, one in self.changes.items() if one is not None}


async def iterate_changes(
    reader: Reader, ids: Sequence[str], bases: Mapping[str, str]
) -> AsyncIterator[SnapshotChange]:
    """Each known snapshot in the order asked for, unknown ones left out, a bounded batch at a time.

    Shapes:  bases: of some of the ids, an id that stands before it.
    Errors:  Corrupt when the base of a stored delta is not there.
    """
    for start in range(0, len(ids), _SNAPSHOTS_PER_BATCH_MAX):
        batch = ids[start : start + _SNAPSHOTS_PER_BATCH_MAX]
        heads = {row.snapshot_id: row for row in await rows_of(reader, _HEADS, ids=batch)}
        for portion in _portions([one for one in batch if one in heads], heads, bases):
            async for change in _portion_of_changes(reader, portion, heads, bases):
                yield change


def _is_stored(head: Any, bases: Mapping[str, str]) -> bool:
    """Whether the wanted change is the stored one."""
    base = bases.get(head.snapshot_id)
    return base is not None and head.delta_bytes is not None and head.base_snapshot_id == base


def _portions(
    ids: Sequence[str], heads: Mapping[str, Any], bases: Mapping[str, str]
) -> Iterator[list[str]]:
    """So many at a time that their stored deltas and worked-out changes fit into memory."""
    portion: list[str] = []
    delta_bytes = entries = 0
    for one in ids:
        head = heads[one]
        more_bytes = head.delta_bytes if _is_stored(head, bases) else 0
        more_entries = 0 if more_bytes else head.entry_count
        over = delta_bytes + more_bytes > _DELTA_BYTES_PER_BATCH_MAX
        if portion and (over or entries + more_entries > ENTRIES_PER_BATCH_MAX):
            yield portion
            portion, delta_bytes, entries = [], 0, 0
        portion.append(one)
        delta_bytes += more_bytes
        entries += more_entries
    if portion:
        yield portion


async def _portion_of_changes(
    reader: Reader, ids: Sequence[str], heads: Mapping[str, Any], bases: Mapping[str, str]
) -> AsyncIterator[SnapshotChange]:
    stored = [one for one in ids if _is_stored(heads[one], bases)]
    blobs = {row.snapshot_id: row.delta_blob for row in await rows_of(reader, _DELTAS, ids=stored)}
    others = [one for one in ids if one not in blobs]
    deltas = {one: (bases[one], blob) for one, blob in blobs.items()}
    worked_out = await _work_out(reader, others, bases, deltas)
    for one in ids:
        base: str | None
        changes: Mapping[str, str | None]
        if one in blobs:
            base, changes = bases[one], decode_delta(blobs[one])
        else:
            base, changes = worked_out[one]
        yield SnapshotChange(
            snapshot_id=one,
            created_at=heads[one].created_at,
            base_snapshot_id=base,
            changes=changes,
        )


async def _work_out(
    reader: Reader,
    ids: Sequence[str],
    bases: Mapping[str, str],
    deltas: Mapping[str, tuple[str, bytes]],
) -> dict[str, tuple[str | None, Mapping[str, str | None]]]:
    """The changes of these snapshots from whole manifests, each read right after its base's."""
    asked: list[str] = []
    for one in ids:
        asked += [bases[one], one] if one in bases else [one]
    wanted = set(ids)
    found: dict[str, tuple[str | None, Mapping[str, str | None]]] = {}
    before: tuple[str, Manifest] | None = None
    for snapshot_id, manifest in await resolve_manifests(reader, asked, deltas=deltas):
        if snapshot_id in wanted and snapshot_id not in found:
            base = bases.get(snapshot_id)
            if base is None:
                found[snapshot_id] = None, manifest
            elif before is not None and before[0] == base:
                found[snapshot_id] = _change(base, before[1], manifest)
        before = snapshot_id, manifest
    return found


def _change(
    base_id: str, base: Manifest, manifest: Manifest
) -> tuple[str | None, Mapping[str, str | None]]:
    """The rule of `choose_form`, but for the length of chains: a reader of a pack walks none."""
    delta: Delta = delta_between(base, manifest)
    if len(delta) <= len(manifest) * DELTA_SHARE_MAX:
        return base_id, delta
    return None, manifest
