"""10,000 timed deletions by us and by peers that pip or apt can install, on the same work.

Blobs of 16 KiB lie in one folder; each is to be deleted at its own time, all within one second.
Who does it is in `contenders.py`: we, pgqueuer with a task that unlinks, etcd with a lease and a
key for each blob and watchers that unlink; each with two workers, and with the settings that were
best for this work. Lateness counts from the deadline to the moment when the kernel says that the
name is gone, by one clock for all of them. Then the same beside a million more that are not yet
due. Then again with nothing beside them, and when half of the blobs are gone, one of the two
workers is killed with -9: recovery is the time from there to the last blob gone.

The control: two processes that know every deadline, wait and unlink, and record nothing.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from functools import partial

from benchmarks import million
from benchmarks.contenders import Bare, Contender, EtcdLeases, Ours, PgQueuer, check_peers
from benchmarks.figures import Benchmark, Figure, Run, percentile
from benchmarks.idle import LEASES, LEASES_QUICK
from benchmarks.place import Place
from benchmarks.vanishing import vanishing

_DELETIONS, _DELETIONS_QUICK = 10_000, 200
# As many as etcd's JSON gateway takes within a minute; each is two synced writes.
_ETCD_PENDING, _ETCD_PENDING_QUICK = 50_000, 100
# pgqueuer's own default; and about the shortest that it bears: a job of a live worker that is late
# with its heartbeat for so long is carried out twice.
_HEARTBEAT_SECONDS, _HEARTBEAT_SECONDS_SHORT = 30.0, 2.0
_WAIT_SECONDS_MAX = 120.0
_POLL_SECONDS = 0.002


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """What was seen from outside. `recovery_seconds` where a worker was killed."""

    late_ms: list[float]
    per_second: float
    recovery_seconds: float

    def figures(self, prefix: str) -> dict[str, float]:
        return {
            f"{prefix}_p50_ms": percentile(self.late_ms, 50),
            f"{prefix}_p99_ms": percentile(self.late_ms, 99),
            f"{prefix}_max_ms": max(self.late_ms),
            f"{prefix}_early": sum(late < 0 for late in self.late_ms),
            f"{prefix}_per_second": self.per_second,
        }


async def _measured(contender: Contender, count: int, *, kill: bool = False) -> _Measured:
    async with contender:
        await contender.begin()
        with vanishing(contender.folder) as gone:
            due = await contender.schedule(count)
            killed_at = time.time()
            async with asyncio.timeout(_WAIT_SECONDS_MAX):
                if kill:
                    while len(gone) < count // 2:  # noqa: ASYNC110  a thread adds to it
                        await asyncio.sleep(_POLL_SECONDS)
                    killed_at = time.time()
                    await contender.kill()
                while not gone.keys() >= due.keys():  # noqa: ASYNC110
                    await asyncio.sleep(_POLL_SECONDS)
    last = max(gone[name] for name in due)
    return _Measured(
        late_ms=[1000 * (gone[name] - deadline) for name, deadline in due.items()],
        per_second=count / (last - min(due.values())),
        recovery_seconds=last - killed_at,
    )


class _Runs:
    """Each contender on a database and a folder of its own."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._count = _DELETIONS_QUICK if place.quick else _DELETIONS
        self._leases = LEASES_QUICK if place.quick else LEASES

    async def bare(self) -> _Measured:
        home = await self._place.home()
        found = await _measured(Bare(home.folder), self._count)
        await self._place.drop(home)
        return found

    async def ours(self, *, kill: bool = False) -> _Measured:
        home = await self._place.home()
        found = await _measured(Ours(self._place, home), self._count, kill=kill)
        await self._place.drop(home)
        return found

    async def ours_beside(self) -> _Measured:
        prepare = partial(million.fill, leases=self._leases)
        home = await self._place.kept("million", prepare)
        return await _measured(Ours(self._place, home), self._count)

    async def pgqueuer(
        self,
        *,
        pending: bool = False,
        kill: bool = False,
        heartbeat_seconds: float = _HEARTBEAT_SECONDS,
    ) -> _Measured:
        home = await self._place.home()
        contender = PgQueuer(
            home, pending=self._leases if pending else 0, heartbeat_seconds=heartbeat_seconds
        )
        found = await _measured(contender, self._count, kill=kill)
        await self._place.drop(home)
        return found

    async def etcd(self, *, pending: int = 0, kill: bool = False) -> _Measured:
        home = await self._place.home()
        contender = EtcdLeases(self._place, home.folder, pending=pending)
        found = await _measured(contender, self._count, kill=kill)
        await self._place.drop(home)
        return found


async def _run(place: Place) -> Run:
    check_peers()
    runs = _Runs(place)
    usual = _HEARTBEAT_SECONDS_SHORT if place.quick else _HEARTBEAT_SECONDS
    found = (await runs.bare()).figures("control")
    ours, queued, etcd = await runs.ours(), await runs.pgqueuer(), await runs.etcd()
    found |= ours.figures("ours") | queued.figures("pgqueuer") | etcd.figures("etcd")
    ours, queued = await runs.ours_beside(), await runs.pgqueuer(pending=True)
    etcd = await runs.etcd(pending=_ETCD_PENDING_QUICK if place.quick else _ETCD_PENDING)
    found |= ours.figures("ours_million") | queued.figures("pgqueuer_million")
    found |= etcd.figures("etcd_million")
    ours = await runs.ours(kill=True)
    queued = await runs.pgqueuer(kill=True, heartbeat_seconds=usual)
    short_queued = await runs.pgqueuer(kill=True, heartbeat_seconds=_HEARTBEAT_SECONDS_SHORT)
    etcd = await runs.etcd(kill=True)
    found |= {
        "ours_recovery_seconds": ours.recovery_seconds,
        "pgqueuer_recovery_seconds": queued.recovery_seconds,
        "pgqueuer_short_recovery_seconds": short_queued.recovery_seconds,
        "etcd_recovery_seconds": etcd.recovery_seconds,
        "recovery_ratio": ours.recovery_seconds
        / min(queued.recovery_seconds, etcd.recovery_seconds),
    }
    for when in ("", "_million"):
        found[f"p99_ratio{when}"] = found[f"ours{when}_p99_ms"] / found[f"pgqueuer{when}_p99_ms"]
    kept = FIGURES.keys()
    return {name: value for name, value in found.items() if name in kept}


def _figures(key: str, who: str) -> dict[str, Figure]:
    return {
        f"{key}_p50_ms": Figure(label=f"{who}: deadline to blob gone, p50", unit="ms"),
        f"{key}_p99_ms": Figure(label=f"{who}: deadline to blob gone, p99", unit="ms"),
        f"{key}_max_ms": Figure(label=f"{who}: deadline to the last", unit="ms", worst=True),
        f"{key}_early": Figure(label=f"{who}: deleted early", worst=True),
        f"{key}_per_second": Figure(label=f"{who}: deleted, from the first deadline", unit="/s"),
    }


FIGURES = (
    _figures("ours", "ours")
    | {"ours_early": Figure(label="ours: deleted early", at_most=0, worst=True)}
    | _figures("pgqueuer", "pgqueuer")
    | _figures("etcd", "etcd")
    | _figures("control", "control: timers and unlink")
    | {"p99_ratio": Figure(label="our p99 to pgqueuer's", unit="times", at_most=0.5)}
    | _figures("ours_million", "ours, a million more")
    | _figures("pgqueuer_million", "pgqueuer, a million more")
    | _figures("etcd_million", "etcd, 50,000 more")
    | {
        "p99_ratio_million": Figure(
            label="our p99 to pgqueuer's, a million more", unit="times", at_most=0.5
        ),
        "ours_recovery_seconds": Figure(label="ours: from kill -9 to all gone", unit="s"),
        "pgqueuer_recovery_seconds": Figure(
            label="pgqueuer: from kill -9 to all gone, heartbeat 30 s (default)", unit="s"
        ),
        "pgqueuer_short_recovery_seconds": Figure(
            label="pgqueuer: from kill -9 to all gone, heartbeat 2 s", unit="s"
        ),
        "etcd_recovery_seconds": Figure(label="etcd: from kill -9 to all gone", unit="s"),
        "recovery_ratio": Figure(
            label="our recovery to the best of theirs, by default", unit="times", at_most=0.1
        ),
    }
)
PEERS = Benchmark(
    name="peers",
    about="10,000 deletions due within a second, by us, by pgqueuer and by etcd's leases",
    figures=FIGURES,
    run=_run,
)
