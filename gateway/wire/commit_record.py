"""The fields of a commit record that only Muse itself fills, as they stand in one that it did not.

Source: the record in WIRE.md; the order is the client's.
"""

from __future__ import annotations

from typing import Any


def unfilled_fields() -> dict[str, Any]:
    """What follows `metadata` in a commit record."""
    return {
        "structured_delta": None,
        "sem_ver_bump": "none",
        "breaking_changes": [],
        "agent_id": "",
        "model_id": "",
        "toolchain_id": "",
        "prompt_hash": "",
        "signature": "",
        "signer_key_id": "",
        "format_version": 1,
        "reviewed_by": [],
        "test_runs": 0,
    }
