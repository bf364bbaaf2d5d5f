"""What an examination tells."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Health(StrEnum):
    """How a check went."""

    OK = "ok"
    SKIPPED = "skipped"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check: how it went, what was seen, and, if it is not well, what mends it."""

    check: str
    health: Health
    detail: str
    mend: str | None = None


def ok(check: str, detail: str) -> Finding:
    """All is well."""
    return Finding(check=check, health=Health.OK, detail=detail)


def skipped(check: str, detail: str, mend: str | None = None) -> Finding:
    """It could not be looked at."""
    return Finding(check=check, health=Health.SKIPPED, detail=detail, mend=mend)


def warning(check: str, detail: str, *, mend: str) -> Finding:
    """It works, and should be looked after."""
    return Finding(check=check, health=Health.WARNING, detail=detail, mend=mend)


def problem(check: str, detail: str, *, mend: str) -> Finding:
    """It does not work."""
    return Finding(check=check, health=Health.PROBLEM, detail=detail, mend=mend)
