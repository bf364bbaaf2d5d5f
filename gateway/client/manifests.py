"""Snapshots as a pack tells them: whole, or as changes on one that stands earlier in it.

The id of a snapshot is a hash over its whole manifest, so every manifest has to be there once, in
order, to be checked. One running manifest is led through all of them: down from a base by a delta,
and back by what that delta undid, so memory stays that of one manifest and of the deltas however
the history branches. A base must have been told before, and once; so there is no cycle, and no
chain is ever walked to check an id.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gateway.client.commits import Record
from gateway.client.errors import BadPack, TooBig
from gateway.client.running import Delta, RunningManifest, Undo
from gateway.wire.ids import PREFIX, is_snapshot_id

_ID_CHARACTERS = {64, 64 + len(PREFIX)}
_UNSEEN: tuple[str, dict[str, str]] = ("", {})


class Snapshots(Mapping[str, Record]):
    """The snapshots of a pack by their bare ids; each record is made, with its whole manifest,
    when it is asked for. Asked for in the pack's order, that takes one delta each.
    """

    def __init__(self) -> None:
        self._told: dict[str, Record] = {}
        self._bases: dict[str, str] = {}
        self._latest = _UNSEEN

    def __getitem__(self, snapshot_id: str) -> Record:
        record = self._told[snapshot_id]
        if snapshot_id not in self._bases:
            return record
        told = {key: record[key] for key in record if key not in ("base_snapshot_id", "delta")}
        return told | {"manifest": self._manifest(snapshot_id)}

    def __iter__(self) -> Iterator[str]:
        return iter(self._told)

    def __len__(self) -> int:
        return len(self._told)

    def __contains__(self, snapshot_id: object) -> bool:
        return snapshot_id in self._told

    def add(self, record: object) -> None:
        """A snapshot as the pack tells it.

        Errors: BadPack for a whole one that is not what its id says, and as for `add_delta`.
        """
        snapshot_id, told = _snapshot(record)
        if "base_snapshot_id" in told:
            base_id = told["base_snapshot_id"].removeprefix(PREFIX)
            self.add_delta(snapshot_id, base_id, told)
            return
        if not _is_manifest_of(snapshot_id, told["manifest"]):
            raise BadPack(f"The snapshot {snapshot_id[:80]} is not what its id says.")
        self.add_whole(snapshot_id, told)

    def add_whole(self, snapshot_id: str, record: Record) -> None:
        """A snapshot with its whole manifest.

        Errors: BadPack when it was told by changes before.
        """
        if snapshot_id in self._bases:
            raise _told_twice(snapshot_id)
        self._told[snapshot_id] = record

    def add_delta(self, snapshot_id: str, base_id: str, record: Record) -> None:
        """A snapshot that is told by its changes.

        Errors: BadPack when its base was not told before, or it was itself.
        """
        if base_id not in self._told:
            raise BadPack("A snapshot's base does not stand before it.", base=base_id[:80])
        if snapshot_id in self._told:
            raise _told_twice(snapshot_id)
        self._told[snapshot_id] = record
        self._bases[snapshot_id] = base_id

    def object_ids(self) -> set[str]:
        """The bare ids of all objects that any of them names."""
        found: set[str | None] = set()
        for snapshot_id, record in self._told.items():
            told = record["delta"] if snapshot_id in self._bases else record["manifest"]
            found.update(told.values())
        return {object_id.removeprefix(PREFIX) for object_id in found if object_id is not None}

    def verify(self, *, manifest_bytes_max: int, bytes_max: int) -> None:
        """Recompute the id of every snapshot that was told by changes, and of all their bases.

        Errors: BadPack naming the first that is not what its id says; TooBig when one manifest, or
                all of them together, would be too large if they were written out.
        """
        if not self._bases:
            return
        below: dict[str, list[str]] = {}
        for snapshot_id, base_id in self._bases.items():
            below.setdefault(base_id, []).append(snapshot_id)
        budget = _Budget(each_bytes_max=manifest_bytes_max, bytes_max=bytes_max)
        for base_id in below:
            if base_id not in self._bases:
                self._verify_tree(base_id, below, budget)

    def _verify_tree(self, top: str, below: Mapping[str, list[str]], budget: _Budget) -> None:
        """One whole manifest, and everything that is told by changes on it."""
        running = RunningManifest(self._told[top]["manifest"])
        budget.spend(running.check(top))
        undone: list[list[Undo]] = []
        waiting = [(1, one) for one in reversed(below[top])]
        while waiting:
            depth, snapshot_id = waiting.pop()
            while len(undone) >= depth:
                running.put_back(undone.pop())
            undone.append(running.change(self._told[snapshot_id]["delta"]))
            budget.spend(running.check(snapshot_id))
            waiting += [(depth + 1, one) for one in reversed(below.get(snapshot_id, ()))]

    def _manifest(self, snapshot_id: str) -> dict[str, str]:
        deltas: list[Delta] = []
        link, (latest_id, latest) = snapshot_id, self._latest
        while link in self._bases and link != latest_id:
            deltas.append(self._told[link]["delta"])
            link = self._bases[link]
        manifest = dict(latest if link == latest_id else self._told[link]["manifest"])
        for delta in reversed(deltas):
            for path, object_id in delta.items():
                if object_id is None:
                    manifest.pop(path, None)
                else:
                    manifest[path] = object_id
        self._latest = snapshot_id, manifest
        return {path: manifest[path] for path in sorted(manifest)}


class _Budget:
    """How many bytes of manifests a pack may unfold to: hashing them is work, as storing them is.

    A delta of a few bytes asks for the hash of its whole manifest.
    """

    def __init__(self, *, each_bytes_max: int, bytes_max: int) -> None:
        self._each_bytes_max = each_bytes_max
        self._left = bytes_max

    def spend(self, count: int) -> None:
        self._left -= count
        if count > self._each_bytes_max or self._left < 0:
            raise TooBig("The pack's manifests are too large when they are written out.")


def _snapshot(record: object) -> tuple[str, Record]:
    """The bare id of a snapshot that has what it must be made of."""
    if type(record) is dict:
        snapshot_id = record.get("snapshot_id")
        if isinstance(snapshot_id, str) and (
            (isinstance(record["base_snapshot_id"], str) and _is_delta(record.get("delta")))
            if "base_snapshot_id" in record
            else _is_manifest(record.get("manifest"))
        ):
            return snapshot_id.removeprefix(PREFIX), record
    raise BadPack("A snapshot of the pack cannot be read.")


def _told_twice(snapshot_id: str) -> BadPack:
    return BadPack("A snapshot is told twice.", snapshot_id=snapshot_id[:80])


def _is_manifest(told: object) -> bool:
    """Whether it is one, and cannot be read as another one that is hashed over the same bytes."""
    return (
        type(told) is dict
        and {*map(type, told), *map(type, told.values())} <= {str}
        and {*map(len, told.values())} <= _ID_CHARACTERS
        and "\0" not in "".join(told)
        and "\0" not in "".join(told.values())
    )


def _is_delta(told: object) -> bool:
    if type(told) is not dict:
        return False
    for path, object_id in told.items():
        if type(path) is not str or not (object_id is None or type(object_id) is str):
            return False
    return True


def _is_manifest_of(snapshot_id: str, manifest: Mapping[str, str]) -> bool:
    """Whether it is, however its author wrote ids, and however they were asked for."""
    if is_snapshot_id(snapshot_id, manifest):
        return True
    bare = {path: object_id.removeprefix(PREFIX) for path, object_id in manifest.items()}
    return bare != manifest and is_snapshot_id(snapshot_id, bare)
