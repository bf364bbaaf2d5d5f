"""The expensive half of planning: everything a build reads from the database, before it begins.

Commits and snapshots go straight into the pack's spool while they are read, so memory stays flat
however long the history is; of the objects only their places are kept. When this returns, the
database is not needed any more and no blob has been touched.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from functools import partial

from gateway.errors import TooLarge
from gateway.off_loop import off_loop
from gateway.packs.commit_rows import INLINE_COMMITS
from gateway.packs.delta_rows import iterate_changes
from gateway.packs.lacking import Lacking
from gateway.packs.manifest_rows import iterate_manifests
from gateway.packs.order import ObjectOrder, commit_order, snapshot_bases, snapshot_order
from gateway.packs.places import Places, find_places
from gateway.packs.records import (
    INLINE_ENTRIES,
    changes_in_order,
    commit_records,
    snapshots_in_order,
)
from gateway.packs.splice import Snapshots, pack_head, section
from gateway.packs.spool import PackWriter
from gateway.packs.transaction import Reader
from gateway.wire.ids import PREFIX, IdForm


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How much of each a pack holds."""

    commits: int
    snapshots: int
    objects: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A pack of which commits and snapshots are written, and whose objects are found.

    Units:   bytes_planned: the pack's size before compression, without foreign objects.
    """

    writer: PackWriter
    form: IdForm
    places: Places
    counts: Counts
    bytes_planned: int


async def make_plan(
    reader: Reader,
    lacking: Lacking,
    *,
    writer: PackWriter,
    form: IdForm,
    told: Snapshots,
    pack_bytes_max: int,
) -> Plan:
    """Read everything the pack needs; the writer stays the caller's to close.

    Errors: IncompleteRepo (nothing of a pack is ever sent that has a hole), TooLarge, SpoolFull,
            DatabaseUnavailable.
    """
    much = len(lacking.commits) > INLINE_COMMITS
    commits = await off_loop(partial(commit_order, lacking.commits), much=much)
    await writer.write(pack_head(len(commits), snapshots=told))
    async for record in commit_records(reader, lacking.repo_id, commits, form=form):
        await writer.write(record)
    snapshots = await off_loop(partial(_snapshots_of, lacking), much=much)
    entries = _whole if told == "whole" else _changes
    order = ObjectOrder()
    await writer.write(section("snapshots", len(snapshots)))
    async for entry, brought in entries(reader, lacking, snapshots, form):
        await writer.write(entry)
        await _collect(order, brought, lacking)
    await _discard_held(reader, lacking, order)
    object_ids = await asyncio.to_thread(order.sorted)
    del order  # It holds every path.
    places = await find_places(reader, lacking.repo_id, object_ids)
    await writer.write(section("objects", len(places)))
    longer = len(places) * len(PREFIX) if form is IdForm.PREFIXED else 0
    bytes_planned = writer.bytes_in + places.entry_bytes + longer
    if bytes_planned > pack_bytes_max:
        raise TooLarge(f"This pack would be over {pack_bytes_max:,} bytes; fetch in steps.")
    counts = Counts(commits=len(commits), snapshots=len(snapshots), objects=len(places))
    return Plan(writer=writer, form=form, places=places, counts=counts, bytes_planned=bytes_planned)


async def count_entities(reader: Reader, lacking: Lacking) -> Counts:
    """What the pack of this plan holds, without making it."""
    much = len(lacking.commits) > INLINE_COMMITS
    snapshots = await off_loop(partial(_snapshots_of, lacking), much=much)
    order = ObjectOrder()
    bases = await off_loop(partial(snapshot_bases, lacking.commits, snapshots), much=much)
    async for change in iterate_changes(reader, snapshots, bases):
        await _collect(order, change.brought, lacking)
    await _discard_held(reader, lacking, order)
    return Counts(commits=len(lacking.commits), snapshots=len(snapshots), objects=len(order))


def _snapshots_of(lacking: Lacking) -> list[str]:
    return snapshot_order(lacking.commits, lacking.known_snapshots)


def _whole(
    reader: Reader, lacking: Lacking, snapshots: list[str], form: IdForm
) -> AsyncIterator[tuple[bytes, Mapping[str, str]]]:
    return snapshots_in_order(reader, lacking.repo_id, snapshots, form=form)


def _changes(
    reader: Reader, lacking: Lacking, snapshots: list[str], form: IdForm
) -> AsyncIterator[tuple[bytes, Mapping[str, str]]]:
    bases = snapshot_bases(lacking.commits, snapshots)
    return changes_in_order(reader, lacking.repo_id, snapshots, bases=bases, form=form)


async def _collect(order: ObjectOrder, manifest: Mapping[str, str], lacking: Lacking) -> None:
    def add() -> None:
        known = lacking.known_objects
        order.add(manifest, [one for one in manifest.values() if one not in known])

    await off_loop(add, much=len(manifest) > INLINE_ENTRIES)


async def _discard_held(reader: Reader, lacking: Lacking, order: ObjectOrder) -> None:
    """Drop what the client holds: everything in the snapshots just outside of what it lacks (an
    object that is not new there is in one of those), or, in a foreign history, on its whole side.
    """
    border = {node.snapshot_id for node in lacking.difference.border.values() if node.snapshot_id}
    held = sorted(lacking.have_snapshots or border)
    if held and len(order):
        async for _, manifest in iterate_manifests(reader, held):
            order.discard(manifest.values())
