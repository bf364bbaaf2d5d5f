"""Appends of one event each, by 8 and by 64 callers at a time.

Each caller appends what a lease brings: `lease.reserved`, then `lease.activated` with its guards,
then those of a new lease; so half of the appends insert a row of `mpack_leases` and half update
one. Beside it, in turns: as many connections that commit one plain row each.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from benchmarks import lease_facts
from benchmarks.figures import Benchmark, Figure, Run
from benchmarks.load import load
from benchmarks.place import Home, Place, serving
from benchmarks.plain_inserts import plain_inserts
from gateway.service import Service
from leases.ids import new_mpack_id

_CALLERS = (8, 64)


class _Appends:
    """What the callers do; each has at most one lease under way."""

    def __init__(self, service: Service, now: datetime) -> None:
        self._log = service.engine.log
        self._log_id = service.engine.log_id
        self._now = now
        self._reserved: dict[int, str] = {}

    async def turn(self, caller: int) -> None:
        mpack_id = self._reserved.pop(caller, None)
        if mpack_id is None:
            mpack_id = self._reserved[caller] = new_mpack_id()
            fact = lease_facts.reserved(mpack_id, log_id=self._log_id, now=self._now)
        else:
            later = self._now + timedelta(days=1)
            fact = lease_facts.activated(mpack_id, now=self._now, delete_at=later)
        await self._log.append([fact])


async def _measure(home: Home, seconds: float) -> Run:
    found: dict[str, float] = {}
    async with (
        serving(home) as service,
        plain_inserts(home, callers=max(_CALLERS)) as plain,
    ):
        appends = _Appends(service, service.engine.database_clock.now())
        await load(8, seconds / 4, appends.turn)
        await load(8, seconds / 4, plain.insert)
        for callers in _CALLERS:
            ours = await load(callers, seconds, appends.turn)
            control = await load(callers, seconds, plain.insert)
            found |= {
                f"per_second_{callers}": ours.per_second,
                f"p50_ms_{callers}": ours.percentile_ms(50),
                f"p99_ms_{callers}": ours.percentile_ms(99),
                f"control_per_second_{callers}": control.per_second,
                f"ratio_{callers}": ours.per_second / control.per_second,
            }
    return found


async def _run(place: Place) -> Run:
    home = await place.home()
    found = await place.apart(_measure, home, 0.2 if place.quick else 8.0)
    await place.drop(home)
    return found


def _figures(callers: int, goal: float) -> dict[str, Figure]:
    return {
        f"per_second_{callers}": Figure(
            label=f"events appended, {callers} callers", unit="/s", at_least=goal
        ),
        f"p50_ms_{callers}": Figure(label=f"an append, {callers} callers, p50", unit="ms"),
        f"p99_ms_{callers}": Figure(label=f"an append, {callers} callers, p99", unit="ms"),
        f"control_per_second_{callers}": Figure(
            label=f"control: plain rows, {callers} connections", unit="/s"
        ),
        f"ratio_{callers}": Figure(label=f"ours to the control's, {callers} callers", unit="times"),
    }


APPENDS = Benchmark(
    name="appends",
    about="single events appended to the log, beside one plain row a commit",
    figures=_figures(8, 5_000) | _figures(64, 10_000),
    run=_run,
)
