"""Whether there is room for one lease more: the pure half of the quotas.

Four limits stand beside each other: open leases and transient bytes, of one repo and of all. What
is used is what the database counted a moment ago and what this process granted since. Of that much
room several replicas know at the same time; so between two counts each of them takes at most a
share of it, or one grant where the share is smaller. `leases.quotas` asks the database.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from leases.policy import LeasePolicy

# Their names in metrics and errors.
QUOTAS = ("leases_per_repo", "leases", "transient_bytes_per_repo", "transient_bytes")


class Amount(NamedTuple):
    """So many leases, and the bytes of their blobs."""

    leases: int
    size_bytes: int


NOTHING = Amount(0, 0)


class Verdict(Enum):
    """What becomes of a wish."""

    FITS = "fits"
    LATER = "later"  # There is room, but this replica has had its share of what was counted.
    FULL = "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One quota: its name in metrics, how much there may be (0: no limit), and whose it is."""

    name: str
    at_most: int
    in_bytes: bool
    per_repo: bool

    def of(self, amount: Amount) -> int:
        """The number that this quota counts."""
        return amount.size_bytes if self.in_bytes else amount.leases

    def in_words(self) -> str:
        """What is full."""
        whose = "This repository" if self.per_repo else "The gateway"
        if self.in_bytes:
            return f"{whose} may hold {self.at_most:,} bytes of packs and uploads at a time"
        return f"{whose} may have {self.at_most:,} open leases at a time"


def limits_of(policy: LeasePolicy) -> tuple[Limit, ...]:
    """The quotas that are set."""
    every = (
        Limit(
            name=name,
            at_most=getattr(policy, f"{name}_max"),
            in_bytes="bytes" in name,
            per_repo=name.endswith("per_repo"),
        )
        for name in QUOTAS
    )
    return tuple(limit for limit in every if limit.at_most)


def judge(at_most: int, *, used: int, granted: int, asked: int, replicas: int) -> Verdict:
    """Whether `asked` fits below `at_most`.

    Shapes:  used: everything that is known of, `granted` included; granted: what this replica took
             since the last count; replicas: how many may be taking, this one included.
    """
    if used + asked > at_most:
        return Verdict.FULL
    if replicas <= 1 or not granted:
        return Verdict.FITS
    # Another replica may have counted just before and just after this one did: twice a share each.
    share = (at_most - used + granted) // (2 * replicas)
    return Verdict.FITS if granted + asked <= share else Verdict.LATER


def seconds_until_free(
    falling_due: Iterable[tuple[float, int]], *, leases: int, size_bytes: int
) -> float:
    """When so much has fallen due, at the latest when the last of these has.

    Shapes:  falling_due: in how many seconds, and how many bytes, the next due first.
    """
    latest = 0.0
    for seconds, freed in falling_due:
        latest = max(latest, seconds)
        leases, size_bytes = leases - 1, size_bytes - freed
        if leases <= 0 and size_bytes <= 0:
            break
    return latest
