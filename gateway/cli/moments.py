"""Times on the command line: a span such as 10m, or a moment by ISO 8601."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import click

_SPAN = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)([smhdw])\Z", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
# A century: what is longer is a slip, and the database's times end somewhere.
_SPAN_SECONDS_MAX = 36_500 * 86_400


def span_of(text: str) -> timedelta | None:
    """The span that this text says; None where it says none, or one that is too long."""
    found = _SPAN.match(text)
    if found is None or float(found[1]) * _SECONDS[found[2]] > _SPAN_SECONDS_MAX:
        return None
    return timedelta(seconds=float(found[1]) * _SECONDS[found[2]])


class Span(click.ParamType[timedelta]):
    """A span such as 30s, 10m, 12h, 30d or 2w."""

    name = "span"

    def convert(
        self, value: str | timedelta, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        span = value if isinstance(value, timedelta) else span_of(value)
        if span is None:
            self.fail("a span is written 30s, 10m, 12h or 30d, up to 36500d", param, ctx)
        return span


class Moment(click.ParamType[datetime]):
    """A span from now, or a moment; without a zone it is UTC.

    With `past`, 10m is ten minutes ago; without it in ten minutes, and the past is refused.
    """

    name = "moment"

    def __init__(self, *, past: bool) -> None:
        self._past = past

    def convert(
        self, value: str | datetime, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        from leases.clock import SystemClock

        if isinstance(value, datetime):
            return value
        now = SystemClock().now()
        span = span_of(value)
        try:
            if span is not None:
                moment = now - span if self._past else now + span
            else:
                moment = datetime.fromisoformat(value)
        except (ValueError, OverflowError):
            self.fail("a time is written 10m, 12h, 30d or 2027-01-31T12:00:00Z", param, ctx)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        if not self._past and moment <= now:
            self.fail("it lies in the past", param, ctx)
        return moment
