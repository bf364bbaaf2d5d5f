"""One manifest that is led from snapshot to snapshot, and hashed no further than it must be.

A snapshot's id is a SHA-256 over its whole manifest. Neighbours differ in a few entries, and what
is hashed before the first of them is the same for both; so the manifest is laid out in runs of some
entries, the hash's state is kept before each run, and each next id is hashed on from the run that
was changed. No digest is taken from anywhere else: it is the same as that of all bytes at once.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right, insort
from collections.abc import Mapping, Sequence

from gateway.client.errors import BadPack
from gateway.wire.ids import PREFIX

Delta = Mapping[str, str | None]
Digits = bytes | bytearray
Entry = tuple[str, Digits]
Undo = tuple[str, Digits | None]

_NUL = b"\0"
_FORMS = (b"", PREFIX.encode())  # How an author may have written the object ids that were hashed.
_DIGITS = 64
# Fewer: more states to copy than bytes saved; more: more bytes hashed again. Both are flat here.
_RUN_ENTRIES = 48


class RunningManifest:
    """A manifest as the bytes that its id is hashed over: `path NUL object_id`, joined by NUL."""

    def __init__(self, manifest: Mapping[str, str]) -> None:
        self._form = b""
        entries = [(path, _bare(object_id)) for path, object_id in manifest.items()]
        if any("\0" in path for path in manifest):
            raise _nul_in_path()
        self._lay_out(sorted(entries))

    def change(self, delta: Delta) -> list[Undo]:
        """Apply changes; what `put_back` needs to undo them.

        Errors: BadPack for a path or an id that cannot be one.
        """
        undo = [
            (path, self._set(path, None if object_id is None else _bare(object_id)))
            for path, object_id in delta.items()
        ]
        undo.reverse()
        return undo

    def put_back(self, undo: Sequence[Undo]) -> None:
        """Undo changes."""
        for path, digits in undo:
            self._set(path, digits)

    def check(self, snapshot_id: str) -> int:
        """Make sure that this is the manifest's id; how many bytes the manifest has.

        Errors: BadPack.
        """
        if self._digest() != snapshot_id:
            # An author writes all ids one way, and the next one is likely to be the same author's.
            self._form = next(form for form in _FORMS if form != self._form)
            self._lay_out([entry for run in self._runs for entry in run.entries()])
            if self._digest() != snapshot_id:
                raise BadPack(f"The snapshot {snapshot_id[:80]} is not what its id says.")
        return self._bytes

    def _digest(self) -> str:
        runs, states = self._runs, self._states
        for number in range(len(states) - 1, len(runs) - 1):
            state = states[number].copy()
            state.update(runs[number].data)
            states.append(state)
        whole = states[-1].copy()
        whole.update(runs[-1].data[:-1])  # No NUL behind the last entry.
        return whole.hexdigest()

    def _set(self, path: str, digits: Digits | None) -> Digits | None:
        """Let a path hold an object, or nothing; what it held."""
        run = self._run_of.get(path)
        if run is None:
            if "\0" in path:
                raise _nul_in_path()
            if digits is not None:
                number = bisect_right(self._firsts, path) - 1
                entries = self._runs[number].entries()
                insort(entries, (path, digits))
                self._replace(number, entries)
            return None
        at = run.places[path]
        old = run.data[at : at + _DIGITS]
        if digits is None:
            del self._run_of[path]
            self._replace(run.number, [entry for entry in run.entries() if entry[0] != path])
        else:
            run.data[at : at + _DIGITS] = digits
            del self._states[run.number + 1 :]
        return old

    def _lay_out(self, entries: Sequence[Entry]) -> None:
        """All of it anew."""
        starts = range(0, max(1, len(entries)), _RUN_ENTRIES)
        self._runs = [_Run(entries[start : start + _RUN_ENTRIES], self._form) for start in starts]
        self._run_of = {path: run for run in self._runs for path in run.places}
        self._firsts = ["", *(entries[start][0] for start in starts[1:])]
        self._states = [hashlib.sha256()]  # One before each run, as far as they are known.
        self._bytes = sum(len(run.data) for run in self._runs)
        self._number_from(0)

    def _replace(self, number: int, entries: Sequence[Entry]) -> None:
        """Lay out one run anew: as two when it has grown long, as none when it has become empty."""
        half = len(entries) // 2
        parts = [entries] if half < _RUN_ENTRIES else [entries[:half], entries[half:]]
        if not entries and len(self._runs) > 1:
            parts = []
        runs = [_Run(part, self._form) for part in parts]
        self._bytes += sum(len(run.data) for run in runs) - len(self._runs[number].data)
        self._runs[number : number + 1] = runs
        self._firsts[number : number + 1] = [part[0][0] if part else "" for part in parts]
        self._firsts[0] = ""
        for run in runs:
            self._run_of.update(dict.fromkeys(run.places, run))
        if len(runs) == 1:
            runs[0].number = number
        else:
            self._number_from(number)
        del self._states[min(number + 1, len(self._runs)) :]

    def _number_from(self, number: int) -> None:
        for at in range(number, len(self._runs)):
            self._runs[at].number = at


class _Run:
    """Some neighbouring entries: their bytes, and where in them the digits of each path stand."""

    __slots__ = ("data", "number", "places")

    def __init__(self, entries: Sequence[Entry], form: bytes) -> None:
        self.number = 0
        self.places: dict[str, int] = {}
        self.data = data = bytearray()
        for path, digits in entries:
            data += path.encode() + _NUL + form
            self.places[path] = len(data)
            data += digits + _NUL

    def entries(self) -> list[Entry]:
        """What it was made of."""
        data = bytes(self.data)
        return [(path, data[at : at + _DIGITS]) for path, at in self.places.items()]


def _bare(object_id: str) -> bytes:
    """The digits of an id. Whatever they say, they have their length and end no entry."""
    digits = object_id.removeprefix(PREFIX).encode()
    if len(digits) != _DIGITS or not digits.isalnum():
        raise BadPack(f"{object_id[:80]!r} is not the id of an object.")
    return digits


def _nul_in_path() -> BadPack:
    """NUL ends a path, or two manifests could be read as one."""
    return BadPack("A path of the pack holds a NUL character.")
