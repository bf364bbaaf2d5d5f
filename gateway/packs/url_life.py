"""How long a URL lives: what may be asked for, what is signed for, what is told."""

from __future__ import annotations

import math
from datetime import datetime, timedelta

from gateway.errors import InvalidTtl
from leases.policy import LeasePolicy


def checked_ttl(policy: LeasePolicy, ttl_seconds: float | None, *, at_least: float = 0.0) -> float:
    """The TTL that was asked for, or the default.

    Errors: InvalidTtl (422) for what no lease can have.
    """
    if ttl_seconds is None:
        return policy.ttl_default_seconds
    longest = policy.ttl_max_seconds
    if not (math.isfinite(ttl_seconds) and 0 < ttl_seconds <= longest):
        raise InvalidTtl(f"ttl_seconds must be above 0 and at most {longest:g}.")
    if ttl_seconds < at_least:
        raise InvalidTtl(f"ttl_seconds must be at least {at_least:g}.")
    return float(ttl_seconds)


def seconds_left(expires_at: datetime, now: datetime, *, ttl_seconds: float) -> float:
    """How long a URL can still be used; never longer than was asked for.

    `now` is the database's time as this process knows it, some milliseconds off.
    """
    return min(max(0.0, (expires_at - now) / timedelta(seconds=1)), ttl_seconds)


def url_seconds(expires_at: datetime, now: datetime) -> int:
    """What to sign for: from the current whole second to the end, rounded up, so that the URL dies
    within the second after `expires_at` and not before it.
    """
    begin = now.replace(microsecond=0)
    return max(1, math.ceil((expires_at - begin) / timedelta(seconds=1)))
