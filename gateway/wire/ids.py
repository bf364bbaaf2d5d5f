"""Content ids: how they are made, checked and written.

The formulas are the client's (WIRE.md): SHA-256 over texts joined by NUL. A newer client writes
`sha256:` before the digits of every id, also of the ids that go into a hash; an older one does
not. Nothing in a record says which of the two made it, so an id counts as right when it recomputes
with all ids inside bare or with all of them prefixed; a commit's also as they were written there,
because its record is kept byte for byte and may name an old parent beside a new snapshot. Each way
binds the same content, so accepting any of them gives nothing away.

NUL separates the hashed texts: a message or a path that holds one could be split in two ways, so
the decoder refuses NUL in every text before it comes here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum

PREFIX = "sha256:"
_NUL = "\0"
_BARE = re.compile(r"[0-9a-f]{64}")
_SHOWN_CHARACTERS = 80  # Enough of a wrong id to recognise it, never a page of it.


class IdForm(Enum):
    """The two ways to write an id; an answer uses the form of its request."""

    BARE = ""
    PREFIXED = PREFIX

    @classmethod
    def of(cls, text: str) -> IdForm:
        """The form this id is written in."""
        return cls.PREFIXED if text.startswith(PREFIX) else cls.BARE

    @classmethod
    def of_first(cls, ids: Iterable[str]) -> IdForm:
        """The form of a list: that of its first id, bare when it is empty."""
        return cls.of(next(iter(ids), ""))

    def write(self, bare_id: str) -> str:
        """This id, which is bare, in this form."""
        return self.value + bare_id


def bare(text: str) -> str:
    """The id without its prefix, as key columns hold it.

    Errors: Incomplete (422) for anything but 64 lower-case hex digits, with or without `sha256:`.
    """
    digits = text.removeprefix(PREFIX)
    if _BARE.fullmatch(digits) is None:
        # Loaded here: a client makes ids too, and is done sooner than these errors are loaded.
        from gateway.errors import Incomplete

        message = f"{text[:_SHOWN_CHARACTERS]!r} is not an id: 64 lower-case hex digits are needed."
        raise Incomplete(message)
    return digits


def bare_all(ids: Iterable[str]) -> list[str]:
    """Every id without its prefix, in the given order, duplicates kept."""
    return [bare(text) for text in ids]


def object_id_of(content: bytes | memoryview) -> str:
    """The bare id of an object's bytes."""
    return hashlib.sha256(content).hexdigest()


def snapshot_id_of(manifest: Mapping[str, str]) -> str:
    """The bare id of a manifest, its object ids hashed as they are written there."""
    # A list and not a generator takes a fifth less, and a clone recomputes every manifest.
    return _hash(sorted([f"{path}\0{object_id}" for path, object_id in manifest.items()]))


def commit_id_of(
    parent_ids: Sequence[str], snapshot_id: str, *, message: str, committed_at: str
) -> str:
    """The bare id of a commit, the ids inside hashed as they are given.

    Shapes:  parent_ids without empty ones, in any order; committed_at: the text as it was sent.
    """
    return _hash([_NUL.join(sorted(parent_ids)), snapshot_id, message, committed_at])


def is_snapshot_id(snapshot_id: str, manifest: Mapping[str, str]) -> bool:
    """Whether this id is the manifest's, whichever form its author wrote ids in; all bare here."""
    if snapshot_id_of(manifest) == snapshot_id:
        return True
    prefixed = {path: PREFIX + object_id for path, object_id in manifest.items()}
    return snapshot_id_of(prefixed) == snapshot_id


def is_commit_id(
    commit_id: str,
    *,
    parent_ids: Sequence[str],
    snapshot_id: str,
    message: str,
    committed_at: str,
) -> bool:
    """Whether this (bare) id is the commit's, whichever form its author wrote ids in."""
    made = commit_id_of(parent_ids, snapshot_id, message=message, committed_at=committed_at)
    return commit_id == made or any(
        commit_id_of(ids[1:], ids[0], message=message, committed_at=committed_at) == commit_id
        for ids in _other_forms([snapshot_id, *parent_ids])
    )


def _other_forms(ids: list[str]) -> Iterable[list[str]]:
    """The ids all bare, all prefixed; each only when it differs from what is written."""
    digits = [text.removeprefix(PREFIX) for text in ids]
    if digits != ids:
        yield digits
    prefixed = [PREFIX + text for text in digits]
    if prefixed != ids:
        yield prefixed


def _hash(texts: Sequence[str]) -> str:
    return hashlib.sha256(_NUL.join(texts).encode()).hexdigest()
