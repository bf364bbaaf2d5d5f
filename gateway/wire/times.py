"""Times as clients write them. A text is kept as it came; this only finds the instant it means."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

from gateway.errors import Incomplete

_SHAPE = re.compile(
    r"""(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)
        (?:[Tt\ ](?P<hour>\d\d):(?P<minute>\d\d)
            (?::(?P<second>\d\d)(?:[.,](?P<fraction>\d{1,30}))?)?
        )?
        \ ?(?P<offset>[Zz]|(?P<sign>[+-])(?P<hours>\d\d)(?::?(?P<minutes>\d\d))?(?::?\d\d)?)?""",
    re.VERBOSE | re.ASCII,
)


def instant_of(text: str, *, what: str) -> datetime:
    """The instant that an ISO 8601 text means, in UTC, cut to microseconds.

    Any offset and any precision will do; without an offset it is UTC, as the client means it.
    Errors: Incomplete (422) when it is no such text or no day of any calendar.
    """
    found = _SHAPE.fullmatch(text)
    if found is None:
        raise Incomplete(f"{what} is not a time such as 2026-01-31T12:00:00+00:00.")
    try:
        return _instant(found)
    except (ValueError, OverflowError) as error:
        raise Incomplete(f"{what} is not a time that exists.") from error


def _instant(found: re.Match[str]) -> datetime:
    second = int(found["second"] or 0)
    moment = datetime(
        int(found["year"]),
        int(found["month"]),
        int(found["day"]),
        int(found["hour"] or 0),
        int(found["minute"] or 0),
        min(second, 59) if second == 60 else second,  # A leap second has no other place to go.
        int((found["fraction"] or "0").ljust(6, "0")[:6]),
        tzinfo=_offset(found),
    )
    return moment.astimezone(UTC)


def _offset(found: re.Match[str]) -> timezone:
    if not found["sign"]:
        return UTC
    offset = timedelta(hours=int(found["hours"]), minutes=int(found["minutes"] or 0))
    return timezone(-offset if found["sign"] == "-" else offset)
