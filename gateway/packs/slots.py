"""Single flight across replicas: who builds, or holds, the shared pack of a cache key.

A slot is taken by compare-and-swap, a dead builder's too, and always with a new mpack_id. Its
builder moves `build_until` on; a builder whose process is gone (its session lock is free) or whose
`build_until` has passed is dead. Waiters hold no connection: they are woken by a notification, and
look by themselves in between. The table is no truth about leases: losing it costs builds.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

import structlog

from gateway.errors import BuildFailed
from gateway.packs.plan import Counts
from gateway.packs.policy import PackPolicy
from leases.database import Database
from leases.errors import Failure
from leases.instance import LIVE_INSTANCES, Instance
from leases.lessor import LEASE_COLUMNS, lease_of
from leases.model import Lease

CHANNEL = "mpack_slots"
_SENTENCE_LENGTH_MAX = 500  # A notification holds 8,000 bytes.
_COUNTS_KEPT_MAX = 10_000  # About 3 MB; beyond that a hit counts again.

_DEAD = f"""(build_until <= clock_timestamp()
     OR built_by LIKE 'live.%' AND built_by <> ALL ({LIVE_INSTANCES}))"""
_LOOK = f"""
SELECT clock_timestamp() AS now, slot.mpack_id AS slot_mpack_id, slot.published,
       CASE WHEN slot.published THEN false ELSE {_DEAD} END AS dead,
       {", ".join(f"l.{name.strip()}" for name in LEASE_COLUMNS.split(","))}
  FROM pack_slots AS slot LEFT JOIN mpack_leases AS l ON l.mpack_id = slot.mpack_id
 WHERE slot.cache_key = $1"""  # noqa: S608  constants
_TAKE_FREE = """
INSERT INTO pack_slots (cache_key, mpack_id, built_by, build_until, published)
VALUES ($1, $2, $3, clock_timestamp() + $4, false) ON CONFLICT (cache_key) DO NOTHING"""
_TAKE_OVER = f"""
UPDATE pack_slots
   SET mpack_id = $2, built_by = $3, build_until = clock_timestamp() + $4, published = false
 WHERE cache_key = $1 AND mpack_id = $5 AND (published OR {_DEAD})"""  # noqa: S608  constants
_BEAT = """
UPDATE pack_slots SET build_until = clock_timestamp() + $3
 WHERE cache_key = $1 AND mpack_id = $2 AND NOT published"""
_PUBLISH = f"""
WITH done AS (UPDATE pack_slots SET published = true, build_until = clock_timestamp()
               WHERE cache_key = $1 AND mpack_id = $2 RETURNING cache_key)
SELECT (SELECT count(*) FROM done) AS published, pg_notify('{CHANNEL}', $3)"""  # noqa: S608  constants
_RELEASE = f"""
WITH done AS (DELETE FROM pack_slots
               WHERE cache_key = $1 AND mpack_id = $2 AND NOT published RETURNING cache_key)
SELECT (SELECT count(*) FROM done) AS released, pg_notify('{CHANNEL}', $3)"""  # noqa: S608  constants
# No lease outlives lease_life_max, so a slot this old cannot lead to a living pack.
_FORGET = "DELETE FROM pack_slots WHERE build_until < clock_timestamp() - $1::interval"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A slot as it stood at `now`; `lease` is that of its pack, once there is one."""

    now: datetime
    mpack_id: str
    published: bool
    dead: bool
    lease: Lease | None


@dataclass(eq=False, slots=True)
class Watch:
    """Somebody waits for a slot: `failures` holds what builders gave up with, by mpack_id."""

    changed: asyncio.Event
    failures: dict[str, Failure]


class Slots:
    """The slots of all replicas. `listen()` once, before anybody waits."""

    def __init__(
        self,
        database: Database,
        instance: Instance,
        policy: PackPolicy,
        *,
        reads: Database | None = None,
    ) -> None:
        self._database = database
        self._reads = reads or database
        self._instance = instance
        self._limit = timedelta(seconds=policy.slot_limit_seconds)
        self._watches: dict[str, list[Watch]] = {}
        self._counts: OrderedDict[str, Counts] = OrderedDict()

    async def listen(self) -> None:
        """Hear of every slot that is published or given up."""
        await self._instance.listen(CHANNEL, self._heard)

    def counts(self, mpack_id: str) -> Counts | None:
        """What a published pack holds, if this process was told."""
        return self._counts.get(mpack_id)

    def remember(self, mpack_id: str, counts: Counts) -> None:
        """Keep what a pack holds, for the next caller who shares it."""
        self._counts[mpack_id] = counts
        if len(self._counts) > _COUNTS_KEPT_MAX:
            self._counts.popitem(last=False)

    async def look(self, cache_key: str) -> Slot | None:
        """The slot as it stands."""
        row = await self._reads.fetchrow(_LOOK, cache_key)
        if row is None:
            return None
        return Slot(
            now=row["now"],
            mpack_id=row["slot_mpack_id"],
            published=row["published"],
            dead=row["dead"],
            lease=None if row["mpack_id"] is None else lease_of(row),
        )

    async def take(self, cache_key: str, mpack_id: str, *, seen: str | None) -> bool:
        """Take a slot that is free (`seen` is None), or holds this pack that is of no use."""
        arguments = [cache_key, mpack_id, self._instance.claim_name, self._limit]
        if seen is None:
            return await self._database.execute(_TAKE_FREE, *arguments) == 1
        return await self._database.execute(_TAKE_OVER, *arguments, seen) == 1

    async def beat(self, cache_key: str, mpack_id: str) -> bool:
        """Say that the builder lives; False when the slot is somebody else's by now."""
        return await self._database.execute(_BEAT, cache_key, mpack_id, self._limit) == 1

    async def publish(self, cache_key: str, mpack_id: str, counts: Counts) -> bool:
        """The pack's lease is active: anybody may share it. False when the slot was lost."""
        told = {"cache_key": cache_key, "mpack_id": mpack_id, "counts": asdict(counts)}
        row = await self._database.row(_PUBLISH, cache_key, mpack_id, json.dumps(told))
        return bool(row["published"])

    async def release(self, cache_key: str, mpack_id: str, failure: Failure | None) -> None:
        """Give the slot up, and tell those who wait: they fail too, or, without a failure, one of
        them builds.
        """
        error = failure and {
            "code": failure.code,
            "message": failure.message[:_SENTENCE_LENGTH_MAX],
        }
        told = {"cache_key": cache_key, "mpack_id": mpack_id, "error": error}
        await self._database.fetchrow(_RELEASE, cache_key, mpack_id, json.dumps(told))

    async def forget_old(self, lease_life_max_seconds: float) -> int:
        """Remove the slots whose packs must be gone; how many there were."""
        return await self._database.execute(_FORGET, timedelta(seconds=lease_life_max_seconds))

    @contextmanager
    def watch(self, cache_key: str) -> Iterator[Watch]:
        """Be woken when anything is told about this key."""
        watch = Watch(asyncio.Event(), {})
        watches = self._watches.setdefault(cache_key, [])
        watches.append(watch)
        try:
            yield watch
        finally:
            watches.remove(watch)
            if not watches:
                del self._watches[cache_key]

    def watched(self) -> int:
        """How many keys somebody in this process waits for."""
        return len(self._watches)

    def _heard(self, payload: str) -> None:
        try:
            told = json.loads(payload)
            cache_key, mpack_id = told["cache_key"], told["mpack_id"]
            if "counts" in told:
                self.remember(mpack_id, Counts(**told["counts"]))
            failure = _failure(told["error"]) if told.get("error") else None
        except (ValueError, KeyError, TypeError):
            _log.warning("slot_notification_unreadable")
            return
        for watch in self._watches.get(cache_key, ()):
            if failure is not None:
                watch.failures[mpack_id] = failure
            watch.changed.set()


def _failure(told: dict[str, str]) -> Failure:
    """The builder's error, as the class that bears its code."""
    kinds: list[type[Failure]] = [Failure]
    while kinds:
        kind = kinds.pop(0)
        if kind.code == told["code"]:
            return kind(told["message"])
        kinds += kind.__subclasses__()
    return BuildFailed(told["message"])
