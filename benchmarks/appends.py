"""Appends of one event each, by 8 and by 64 callers at a time.

Each caller appends what a lease brings: `lease.reserved`, then `lease.activated` with its guards,
then those of a new lease; so half of the appends insert a row of `mpack_leases` and half update
one. The facts are made beforehand. Beside it, in turns: as many connections that commit one plain
row each.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from itertools import chain, count

from benchmarks import lease_facts
from benchmarks.figures import Benchmark, Figure, Run
from benchmarks.load import load
from benchmarks.place import Home, Place, serving
from benchmarks.plain_inserts import plain_inserts
from benchmarks.usage import Usage
from gateway.service import Service
from leases.ids import new_mpack_id
from leases.log import NewEvent

_CALLERS = (8, 64)
_LEASES_PER_SECOND = 4_000  # Two facts each.


class _Appends:
    """What the callers do; each appends its own leases' facts, in order."""

    def __init__(self, service: Service) -> None:
        self._engine = service.engine
        self._ready: list[Iterator[NewEvent]] = []

    def prepare(self, callers: int, leases: int) -> None:
        """Make the facts of so many leases for each caller; later ones are made as needed."""
        self._ready = [chain(list(self._facts(leases)), self._facts()) for _ in range(callers)]

    def _facts(self, leases: int | None = None) -> Iterator[NewEvent]:
        now = self._engine.database_clock.now()
        for _ in range(leases) if leases is not None else count():
            mpack_id = new_mpack_id()
            yield lease_facts.reserved(mpack_id, log_id=self._engine.log_id, now=now)
            yield lease_facts.activated(mpack_id, now=now, delete_at=now + timedelta(days=1))

    async def turn(self, caller: int) -> None:
        await self._engine.log.append([next(self._ready[caller])])


async def _measure(home: Home, seconds: float) -> Run:
    found: dict[str, float] = {}
    async with (
        serving(home) as service,
        plain_inserts(home, callers=max(_CALLERS)) as plain,
    ):
        appends = _Appends(service)
        appends.prepare(8, 0)
        await load(8, seconds / 4, appends.turn)
        await load(8, seconds / 4, plain.insert)
        for callers in _CALLERS:
            appends.prepare(callers, round(_LEASES_PER_SECOND * seconds / callers))
            before = Usage.now(home)
            ours = await load(callers, seconds, appends.turn)
            used = Usage.now(home).since(before)
            control = await load(callers, seconds, plain.insert)
            found |= {
                f"per_second_{callers}": ours.per_second,
                f"p50_ms_{callers}": ours.percentile_ms(50),
                f"p99_ms_{callers}": ours.percentile_ms(99),
                f"control_per_second_{callers}": control.per_second,
                f"ratio_{callers}": ours.per_second / control.per_second,
                f"process_cpu_us_{callers}": 1e6 * used.process / len(ours.taken_ms),
                f"postgres_cpu_us_{callers}": 1e6 * used.postgres / len(ours.taken_ms),
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
        f"process_cpu_us_{callers}": Figure(
            label=f"the gateway's processor time an event, {callers} callers", unit="µs"
        ),
        f"postgres_cpu_us_{callers}": Figure(
            label=f"PostgreSQL's processor time an event, {callers} callers", unit="µs"
        ),
    }


APPENDS = Benchmark(
    name="appends",
    about="single events appended to the log, beside one plain row a commit",
    figures=_figures(8, 5_000) | _figures(64, 10_000),
    run=_run,
)
