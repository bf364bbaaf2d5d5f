"""What a lease adds to a fetch: reserve and activate, by one caller, by 16 and by 64.

No blob is stored, so this is the lease alone: two look-ups and two appends. Beside it, in turns: as
many connections that commit two plain rows, the least that two durable facts can cost.
"""

from __future__ import annotations

from benchmarks.figures import Benchmark, Figure, Run
from benchmarks.load import load
from benchmarks.place import CALLER, Home, Place, serving
from benchmarks.plain_inserts import PlainInserts, plain_inserts
from benchmarks.usage import Usage
from gateway.service import Service
from leases.ids import new_mpack_id
from leases.model import LeaseKind

_CALLERS = (1, 16, 64)


class _Grants:
    """The two steps of a fetch that make its lease."""

    def __init__(self, service: Service) -> None:
        self._engine = service.engine

    async def turn(self, _caller: int) -> None:
        lessor = self._engine.lessor
        mpack_id = new_mpack_id()
        await lessor.reserve(
            mpack_id=mpack_id, kind=LeaseKind.PACK, repo_id="benchmark", caller=CALLER
        )
        lease = await lessor.activate(
            mpack_id, sha256="0" * 64, size_bytes=1, ttl_seconds=3600, caller=CALLER
        )
        self._engine.granted(lease)


class _TwoRows:
    def __init__(self, plain: PlainInserts) -> None:
        self._plain = plain

    async def turn(self, caller: int) -> None:
        await self._plain.insert(caller)
        await self._plain.insert(caller)


async def _measure(home: Home, seconds: float) -> Run:
    found: dict[str, float] = {}
    async with (
        serving(home) as service,
        plain_inserts(home, callers=max(_CALLERS)) as plain,
    ):
        grants, two_rows = _Grants(service), _TwoRows(plain)
        await load(8, seconds / 4, grants.turn)
        await load(8, seconds / 4, two_rows.turn)
        for callers in _CALLERS:
            before = Usage.now(home)
            ours = await load(callers, seconds, grants.turn)
            used = Usage.now(home).since(before)
            control = await load(callers, seconds, two_rows.turn)
            found |= {
                f"per_second_{callers}": ours.per_second,
                f"p50_ms_{callers}": ours.percentile_ms(50),
                f"p99_ms_{callers}": ours.percentile_ms(99),
                f"control_per_second_{callers}": control.per_second,
                f"control_p50_ms_{callers}": control.percentile_ms(50),
                f"ratio_{callers}": ours.percentile_ms(50) / control.percentile_ms(50),
                f"process_cpu_us_{callers}": 1e6 * used.process / len(ours.taken_ms),
                f"postgres_cpu_us_{callers}": 1e6 * used.postgres / len(ours.taken_ms),
            }
    return found


async def _run(place: Place) -> Run:
    home = await place.home()
    found = await place.apart(_measure, home, 0.2 if place.quick else 6.0)
    await place.drop(home)
    return found


def _figures(callers: int) -> dict[str, Figure]:
    who = f"{callers} caller" + ("s" if callers > 1 else "")
    return {
        f"per_second_{callers}": Figure(label=f"leases granted, {who}", unit="/s"),
        f"p50_ms_{callers}": Figure(label=f"a lease in the fetch path, {who}, p50", unit="ms"),
        f"p99_ms_{callers}": Figure(label=f"a lease in the fetch path, {who}, p99", unit="ms"),
        f"control_per_second_{callers}": Figure(label=f"control: two rows, {who}", unit="/s"),
        f"control_p50_ms_{callers}": Figure(label=f"control: two rows, {who}, p50", unit="ms"),
        f"ratio_{callers}": Figure(label=f"p50 to the control's, {who}", unit="times"),
        f"process_cpu_us_{callers}": Figure(
            label=f"the gateway's processor time a lease, {who}", unit="µs"
        ),
        f"postgres_cpu_us_{callers}": Figure(
            label=f"PostgreSQL's processor time a lease, {who}", unit="µs"
        ),
    }


GRANTS = Benchmark(
    name="grants",
    about="reserve and activate a lease, beside two plain rows in two commits",
    figures={key: figure for callers in _CALLERS for key, figure in _figures(callers).items()},
    run=_run,
)
