"""How large a request may be: in bytes, in entries, in each of its parts.

Two bounds stand for every list. The ceilings below are part of the types in `messages.py`: the
decoder compares them with a list's declared length before it makes room, so a few bytes cannot
claim gigabytes. The limits are settings, at or below their ceilings, and are checked right after.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

MIB = 1024 * 1024

# Chosen so that a body full of the smallest entries stays within a few times its own size.
OBJECTS_CEILING = 100_000
COMMITS_CEILING = 100_000
ENTRIES_CEILING = 1_000_000
IDS_CEILING = 2_000_000
HEADS_CEILING = 100_000
TAGS_CEILING = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class WireLimits:
    """The limits on requests; `problems()` says what does not fit together.

    Source:  WIRE.md: 64 MiB is what the client reads, 100,000 haves and 1,000,000 ids must pass
             (73 bytes each, so their bodies may be larger), chunks hold up to 400 objects.
    """

    body_bytes_max: int = 64 * MIB
    ids_body_bytes_max: int = 96 * MIB
    objects_per_chunk_max: int = 10_000
    object_bytes_max: int = 64 * MIB
    commits_per_push_max: int = 50_000
    record_bytes_max: int = MIB
    record_depth_max: int = 64
    manifest_entries_max: int = ENTRIES_CEILING
    path_bytes_max: int = 4096
    branch_bytes_max: int = 255
    message_bytes_max: int = 256 * 1024
    want_max: int = 100_000
    have_max: int = 100_000
    ids_max: int = 1_000_000
    presign_put_max: int = 100_000
    presign_get_max: int = 1_000
    upload_bytes_max: int = 1024 * MIB
    tags_max: int = 10_000
    tag_bytes_max: int = 255

    def problems(self) -> list[str]:
        """One sentence for each limit, or pair of limits, that cannot work."""
        found = [
            f"{field.name} must be above zero"
            for field in fields(self)
            if getattr(self, field.name) <= 0
        ]
        found += [
            f"{name} must not exceed {ceiling:,}"
            for name, ceiling in _CEILINGS.items()
            if getattr(self, name) > ceiling
        ]
        if self.record_bytes_max > self.body_bytes_max:
            found.append("record_bytes_max must not exceed body_bytes_max, or it bounds nothing")
        if self.message_bytes_max > self.record_bytes_max:
            found.append("message_bytes_max must not exceed record_bytes_max")
        return found


_CEILINGS = {
    "objects_per_chunk_max": OBJECTS_CEILING,
    "commits_per_push_max": COMMITS_CEILING,
    "manifest_entries_max": ENTRIES_CEILING,
    "want_max": IDS_CEILING,
    "have_max": IDS_CEILING,
    "ids_max": IDS_CEILING,
    "presign_put_max": IDS_CEILING,
    "presign_get_max": IDS_CEILING,
    "tags_max": TAGS_CEILING,
    # An object's entry in a pack is a msgpack bin, which holds less than 4 GiB.
    "upload_bytes_max": 4096 * MIB - 1,
    "tag_bytes_max": 1024,
    # Below the interpreter's own limit, so that checking a record cannot exhaust the stack.
    "record_depth_max": 200,
    # PostgreSQL indexes branch names: a key must stay well below a third of a page.
    "branch_bytes_max": 1024,
}
