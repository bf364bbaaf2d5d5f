"""Names of branches: Git's rules, so that a name works in every tool that meets it."""

from __future__ import annotations

import re

from gateway.errors import Incomplete

# git-check-ref-format(1): control characters and what shells, globs and revisions give a meaning.
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//")


def check_branch(name: str, *, bytes_max: int) -> None:
    """Refuse what cannot be a branch.

    Errors: Incomplete (422) with the reason.
    """
    reason = _reason_against(name, bytes_max)
    if reason:
        raise Incomplete(f"The branch name {name[:80]!r} {reason}.")


def _reason_against(name: str, bytes_max: int) -> str | None:
    if not name:
        return "is empty"
    try:
        size_bytes = len(name.encode())
    except UnicodeEncodeError:
        return "is not valid text"
    if size_bytes > bytes_max:
        return f"is over {bytes_max} bytes"
    if _FORBIDDEN.search(name):
        return "holds a character or a pair of characters that no branch may hold"
    if name == "@" or name.startswith(("-", "/")) or name.endswith(("/", ".")):
        return "begins or ends as no branch may"
    if any(part.startswith(".") or part.endswith(".lock") for part in name.split("/")):
        return "has a part that begins with '.' or ends with '.lock'"
    return None
