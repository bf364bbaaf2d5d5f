"""Snapshots as a pack tells them: whole, or as changes on one that stands earlier in it.

The id of a snapshot is a hash over its whole manifest, so every manifest has to be there once, in
order, to be checked. One running manifest is led through all of them: down from a base by a delta,
and back by what that delta undid, so memory stays that of one manifest and of the deltas however
the history branches. A base must have been told before, and once; so there is no cycle, and no
chain is ever walked to check an id.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import Any

from gateway.client.errors import BadPack, TooBig
from gateway.wire.ids import PREFIX

Record = dict[str, Any]
Delta = Mapping[str, str | None]

_NUL = b"\0"
_FORMS = (b"", PREFIX.encode())  # How an author may have written the object ids that were hashed.
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

    def add_whole(self, snapshot_id: str, record: Record) -> None:
        """A snapshot with its whole manifest."""
        self._told[snapshot_id] = record

    def add_delta(self, snapshot_id: str, base_id: str, record: Record) -> None:
        """A snapshot that is told by its changes.

        Errors: BadPack when its base was not told before, or it was itself.
        """
        if base_id not in self._told:
            raise BadPack("A snapshot's base does not stand before it.", base=base_id[:80])
        if snapshot_id in self._told:
            raise BadPack("A snapshot is told twice.", snapshot_id=snapshot_id[:80])
        self._told[snapshot_id] = record
        self._bases[snapshot_id] = base_id

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
        running = _Running(self._told[top]["manifest"])
        budget.spend(running.check(top))
        undone: list[list[tuple[bytes, bytes | None]]] = []
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


class _Running:
    """One manifest as the sorted list of what its id is hashed over: `path NUL object_id`."""

    def __init__(self, manifest: Mapping[str, str]) -> None:
        self._form = b""
        entries = [_key(path) + _bare(object_id) for path, object_id in manifest.items()]
        entries.sort()
        self._entries = entries

    def change(self, delta: Delta) -> list[tuple[bytes, bytes | None]]:
        """Apply changes; what `put_back` needs to undo them, the object ids bare."""
        changes = [
            (_key(path), None if object_id is None else _bare(object_id))
            for path, object_id in delta.items()
        ]
        undo = [(key, self._set(key, object_id)) for key, object_id in changes]
        undo.reverse()
        return undo

    def put_back(self, undo: list[tuple[bytes, bytes | None]]) -> None:
        """Undo changes."""
        for key, object_id in undo:
            self._set(key, object_id)

    def check(self, snapshot_id: str) -> int:
        """Make sure that this is the manifest's id; how many bytes were hashed.

        Errors: BadPack.
        """
        data = _NUL.join(self._entries)
        if hashlib.sha256(data).hexdigest() == snapshot_id:
            return len(data)
        # An author writes all ids one way, and the next snapshot is likely to be the same author's.
        self._rewrite(next(form for form in _FORMS if form != self._form))
        data = _NUL.join(self._entries)
        if hashlib.sha256(data).hexdigest() != snapshot_id:
            raise BadPack(f"The snapshot {snapshot_id[:80]} is not what its id says.")
        return len(data)

    def _set(self, key: bytes, object_id: bytes | None) -> bytes | None:
        """Let a path hold an object, or nothing; what it held."""
        entries = self._entries
        at = bisect_left(entries, key)
        old = None
        if at < len(entries) and entries[at].startswith(key):
            old = entries[at][len(key) + len(self._form) :]
            if object_id is None:
                del entries[at]
            else:
                entries[at] = key + self._form + object_id
        elif object_id is not None:
            entries.insert(at, key + self._form + object_id)
        return old

    def _rewrite(self, form: bytes) -> None:
        skipped, self._form = len(self._form), form
        for at, entry in enumerate(self._entries):
            path, _, object_id = entry.partition(_NUL)
            self._entries[at] = path + _NUL + form + object_id[skipped:]


def _key(path: str) -> bytes:
    """What an entry of this path begins with. NUL ends a path, or two could be read as one."""
    if "\0" in path:
        raise BadPack("A path of the pack holds a NUL character.")
    return path.encode() + _NUL


def _bare(object_id: str) -> bytes:
    return object_id.removeprefix(PREFIX).encode()
