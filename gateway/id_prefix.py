"""Ids by their beginning, as people give them: it is enough where it is the only one."""

from __future__ import annotations

from collections.abc import Sequence

from leases.errors import InvalidRequest, NotFound

CANDIDATES_MAX = 5  # So many are looked up, and shown.


def only_one(found: Sequence[str], prefix: str, *, missing: NotFound) -> str:
    """The one id that begins with this.

    Errors: `missing` for none, and for no beginning; InvalidRequest for more, with some of them.
    """
    if not prefix or not found:
        raise missing
    if len(found) > 1:
        raise InvalidRequest(f"{prefix} begins more than one id, such as {', '.join(found)}.")
    return found[0]
