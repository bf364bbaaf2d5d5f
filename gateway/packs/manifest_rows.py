"""Reading many manifests by snapshot id, in few statements and bounded memory.

A manifest is stored whole or as a delta on another one (`manifest.py`). One recursive query brings
every row that a batch of snapshots needs, and each row once. Successive snapshots share most of
their chain, so a batch is resolved in the order asked for: with parents before children, each
manifest is its parent's plus one delta.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import text

from gateway.packs.manifest import (
    Delta,
    Manifest,
    apply_in_place,
    decode_delta,
    decode_manifest,
)
from gateway.packs.transaction import Reader
from gateway.portions import portions
from leases.errors import Corrupt

# Manifests of a batch are held together: at about 100 bytes an entry this is some 25 MB.
ENTRIES_PER_BATCH_MAX = 250_000
SNAPSHOTS_PER_BATCH_MAX = 1000

# A foreign base may be written with the prefix. UNION drops what was seen, so that even a cycle in
# damaged data ends. The scalar subquery keeps every step on the primary key, whatever the planner
# believes about the size of an empty working table.
_CHAIN = """
WITH RECURSIVE chain (snapshot_id) AS (
    SELECT unnest(CAST(:ids AS text[]))
  UNION
    SELECT replace(link.base, 'sha256:', '')
      FROM (SELECT (SELECT s.base_snapshot_id FROM snapshots s
                     WHERE s.snapshot_id = chain.snapshot_id AND s.manifest_blob IS NULL) AS base
              FROM chain) AS link
     WHERE link.base IS NOT NULL
)"""
_ROWS = text(
    f"""{_CHAIN}
SELECT s.snapshot_id, s.manifest_blob, s.delta_blob,
       replace(s.base_snapshot_id, 'sha256:', '') AS base_snapshot_id
  FROM chain JOIN snapshots s USING (snapshot_id)"""  # noqa: S608  constants
)
_BASES = text(
    f"""{_CHAIN}
SELECT s.snapshot_id, replace(s.base_snapshot_id, 'sha256:', '') AS base_snapshot_id
  FROM chain JOIN snapshots s USING (snapshot_id)
 WHERE s.manifest_blob IS NULL"""  # noqa: S608  constants
)
_SIZES = text(
    "SELECT snapshot_id, entry_count FROM snapshots WHERE snapshot_id = ANY(CAST(:ids AS text[]))"
)


async def load_manifests(reader: Reader, ids: Sequence[str]) -> dict[str, Manifest]:
    """The manifests of these snapshots (bare ids), all held at once; unknown ids are left out.

    Errors: Corrupt when a delta's base is not there.
    """
    rows = await _rows(reader, ids)
    return dict(_resolve(ids, rows))


async def iterate_manifests(
    reader: Reader, ids: Sequence[str]
) -> AsyncIterator[tuple[str, Manifest]]:
    """Each known snapshot and its manifest, in the order asked for, a bounded batch at a time.

    Ask with parents before children: chains are then walked once. The manifests are for reading.
    """
    counts = await entry_counts(reader, ids)
    for batch in portions(
        ids,
        weight=lambda snapshot_id: counts.get(snapshot_id, 0),
        weight_max=ENTRIES_PER_BATCH_MAX,
        count_max=SNAPSHOTS_PER_BATCH_MAX,
    ):
        rows = await _rows(reader, batch)
        for snapshot_id, manifest in _resolve(batch, rows):
            yield snapshot_id, manifest


async def resolve_manifests(
    reader: Reader, ids: Sequence[str], *, deltas: Mapping[str, tuple[str, bytes]]
) -> Iterator[tuple[str, Manifest]]:
    """As `iterate_manifests` for snapshots that fit into memory together, and whose stored deltas
    are there in part: only what these chains lead to is read.

    Shapes:  deltas: id -> the base it is stored on, and its blob.
    """
    ends: set[str] = set()
    passed: set[str] = set()
    for link in ids:
        while link in deltas and link not in passed:
            passed.add(link)
            link = deltas[link][0]  # noqa: PLW2901  the walk down the chain
        if link not in deltas:
            ends.add(link)
    rows = await _rows(reader, sorted(ends)) if ends else {}
    for one in passed:
        base, blob = deltas[one]
        rows[one] = _Row(base_snapshot_id=base, manifest_blob=None, delta_blob=blob)
    return _resolve(ids, rows)


async def entry_counts(reader: Reader, ids: Sequence[str]) -> dict[str, int]:
    """How many paths each known snapshot holds."""
    result = await reader.execute(_SIZES, {"ids": list(ids)})
    return {row.snapshot_id: row.entry_count for row in result}


async def chain_depths(reader: Reader, ids: Sequence[str]) -> dict[str, int]:
    """How many deltas a read of each snapshot applies: 0 for whole and for unknown ones."""
    result = await reader.execute(_BASES, {"ids": list(ids)})
    bases = {row.snapshot_id: row.base_snapshot_id for row in result}
    depths: dict[str, int] = {}
    for snapshot_id in ids:
        depth, link = 0, snapshot_id
        while link in bases and depth <= len(bases):
            depth, link = depth + 1, bases[link]
        depths[snapshot_id] = depth
    return depths


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    base_snapshot_id: str | None
    manifest_blob: bytes | None
    delta_blob: bytes | None


async def _rows(reader: Reader, ids: Sequence[str]) -> dict[str, _Row]:
    result = await reader.execute(_ROWS, {"ids": list(ids)})
    return {
        row.snapshot_id: _Row(
            base_snapshot_id=row.base_snapshot_id,
            manifest_blob=row.manifest_blob,
            delta_blob=row.delta_blob,
        )
        for row in result
    }


def _resolve(ids: Sequence[str], rows: Mapping[str, _Row]) -> Iterator[tuple[str, Manifest]]:
    """Each known id's manifest; those already resolved serve as bases for the next."""
    resolved: dict[str, Manifest] = {}
    for snapshot_id in ids:
        if snapshot_id not in rows:
            continue
        if snapshot_id not in resolved:
            resolved[snapshot_id] = _manifest(snapshot_id, rows, resolved)
        yield snapshot_id, resolved[snapshot_id]


def _manifest(
    snapshot_id: str, rows: Mapping[str, _Row], resolved: Mapping[str, Manifest]
) -> Manifest:
    """Walk to what is whole or resolved, then apply the deltas on the way back."""
    deltas: list[Delta] = []
    link = snapshot_id
    while link not in resolved:
        row = rows.get(link)
        if row is None or len(deltas) > len(rows):
            raise Corrupt("A snapshot's base is missing.", snapshot_id=snapshot_id, base=link)
        if row.manifest_blob is not None:
            manifest = decode_manifest(row.manifest_blob)
            break
        if row.base_snapshot_id is None or row.delta_blob is None:
            raise Corrupt("A snapshot has no manifest.", snapshot_id=link)
        deltas.append(decode_delta(row.delta_blob))
        link = row.base_snapshot_id
    else:
        manifest = dict(resolved[link])
    for delta in reversed(deltas):
        apply_in_place(manifest, delta)
    return manifest
