"""Every number of building and sharing packs, with its unit in its name."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

_MIB = 1 << 20
_MAY_BE_ZERO = ("build_join_gap_bytes", "inline_keep_window_seconds", "transient_bytes_budget")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackPolicy:
    """The settings of pack building; `problems()` says what does not fit together.

    Source:  DESIGN 7 (heartbeat, its limit, poll), WIRE.md (the client refuses answers over 64
             MiB); the others are chosen so that four builds stay below 200 MiB of memory.
    """

    inline_bytes_max: int = 64 * _MIB
    inline_keep_window_seconds: float = 300
    transient_bytes_budget: int = 0
    pack_bytes_max: int = 16 * 1024 * _MIB
    build_read_bytes_max: int = _MIB
    build_reads_parallel: int = 8
    build_join_gap_bytes: int = 32 * 1024
    builds_at_once: int = 4
    builds_waiting_max: int = 200
    build_wait_seconds: float = 30
    plan_seconds_max: float = 300
    spool_memory_bytes: int = 4 * _MIB
    spool_bytes_max: int = 32 * 1024 * _MIB
    spool_dir: Path | None = None
    foreign_blob_bytes_max: int = 1024 * _MIB
    foreign_object_bytes_max: int = 64 * _MIB
    slot_beat_seconds: float = 2
    slot_limit_seconds: float = 10
    slot_poll_seconds: float = 0.25
    slot_wait_seconds: float = 300
    join_segment_bytes_max: int = _MIB
    join_segments_min: int = 16
    join_bytes: int = 32 * _MIB
    zstd_level: int = 3
    presign_inline_bytes_max: int = 64 * 1024
    negotiate_commits_max: int = 1000

    def problems(self) -> list[str]:
        """One sentence for each setting, or pair of settings, that cannot work."""
        found = [
            f"{field.name} must be above zero"
            for field in fields(self)
            if isinstance(getattr(self, field.name), int | float)
            and field.name not in _MAY_BE_ZERO
            and not getattr(self, field.name) > 0
        ]
        found += [
            f"{name} must not be negative" for name in _MAY_BE_ZERO if not getattr(self, name) >= 0
        ]
        if self.build_read_bytes_max < 4096:
            found.append("build_read_bytes_max must be at least 4096: it holds an entry's head")
        if self.slot_beat_seconds * 2 > self.slot_limit_seconds:
            found.append("slot_limit_seconds must be at least twice slot_beat_seconds")
        if not 1 <= self.zstd_level <= 19:
            found.append("zstd_level must lie between 1 and 19")
        if self.spool_memory_bytes > self.spool_bytes_max:
            found.append("spool_memory_bytes must not exceed spool_bytes_max")
        if self.join_segments_min < 2:
            found.append("join_segments_min must be at least 2")
        if self.join_bytes < 2 * self.join_segment_bytes_max:
            found.append("join_bytes must be at least twice join_segment_bytes_max")
        return found
