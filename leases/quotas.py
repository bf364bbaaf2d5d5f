"""Quotas: how many leases may be open and how many bytes behind them, per repo and in all.

Asked before a lease is reserved, so that a refusal leaves nothing behind. The database is asked for
what is used at most once a second for each repo that wants something (in all: for a tenth of the
time, once that takes long), for all who wait with one question. What this process grants meanwhile
it adds by itself. So one replica alone never passes a limit; several replicas may, by what each
grants before the others have counted it: two grants for each further replica (`leases.room`).

The bytes of a pack are those of its plan until it is active, then its size: its row says either. An
upload's size is not known before it is pushed; it counts as the largest that it may have.
"""

from __future__ import annotations

import asyncio
import math
from bisect import bisect_right
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NoReturn

from leases.claims import DUE
from leases.database import Database
from leases.errors import OverQuota, QuotaReached
from leases.instance import LIVE_INSTANCES
from leases.observe import NOBODY, Observer
from leases.policy import LeasePolicy
from leases.ports import Clock
from leases.room import NOTHING, Amount, Limit, Verdict, judge, limits_of, seconds_until_free

COUNT_SECONDS = 1.0
# A count that takes long is asked for so much more rarely.
_PAUSE_PER_SECOND_ASKED = 10.0
# A repo that wanted nothing for so long is asked for anew; its counts are not kept.
_FORGET_SECONDS = 10.0
# Each round waits for another count, and in each of them somebody gets through.
_ROUNDS_MAX = 10
# Who is refused learns when so many have fallen due, if that is not enough.
_FALLING_DUE_MAX = 200
_SMALLEST = Amount(1, 1)
_UPLOADS = "kind = 'upload' AND size_bytes IS NULL"
_AMOUNT = f"""
    count(*) AS leases, COALESCE(sum(size_bytes), 0)::bigint AS size_bytes,
    count(*) FILTER (WHERE {_UPLOADS}) AS uploads"""

# What this process is granting at the moment it adds itself: $1, so that nothing counts twice.
COUNT_ALL = f"""
SELECT NULL AS repo_id, {_AMOUNT}, cardinality({LIVE_INSTANCES}) AS replicas FROM mpack_leases
WHERE state <> 'reclaimed' AND mpack_id <> ALL ($1::text[])
"""
# One look into the index for each repo, and a row also for one that has no leases.
COUNT_REPOS = f"""
SELECT asked.repo_id, counted.*, cardinality({LIVE_INSTANCES}) AS replicas
FROM unnest($2::text[]) AS asked (repo_id) CROSS JOIN LATERAL (
    SELECT {_AMOUNT} FROM mpack_leases AS l
    WHERE state <> 'reclaimed' AND mpack_id <> ALL ($1::text[]) AND l.repo_id = asked.repo_id
) AS counted
"""
_DUE_COLUMNS = f"""
    extract(epoch FROM {DUE} - statement_timestamp())::float8 AS seconds,
    COALESCE(size_bytes, CASE WHEN {_UPLOADS} THEN $1 ELSE 0 END)::bigint AS size_bytes"""
DUE_OF_ALL = f"""
SELECT {_DUE_COLUMNS} FROM mpack_leases WHERE state <> 'reclaimed' ORDER BY {DUE} LIMIT $2
"""
DUE_OF_REPO = f"""
SELECT {_DUE_COLUMNS} FROM mpack_leases WHERE state <> 'reclaimed' AND repo_id = $3
ORDER BY {DUE} LIMIT $2
"""


@dataclass(slots=True, kw_only=True)
class _Count:
    """What the database said, and what this process granted since it was asked."""

    asked_at: float
    took_seconds: float
    found: Amount
    replicas: int
    granted: Amount = NOTHING
    falling_due: Sequence[tuple[float, int]] | None = None

    @property
    def good_until(self) -> float:
        pause = max(COUNT_SECONDS, _PAUSE_PER_SECOND_ASKED * self.took_seconds)
        return self.asked_at + pause


@dataclass(slots=True, kw_only=True)
class _Grant:
    """Room that this process gave away; from `done_at` on the leases' rows say it all."""

    repo_id: str
    mpack_ids: Sequence[str]
    amount: Amount
    done_at: float = math.inf


@dataclass(slots=True)
class _Books:
    """What is known: of all together under None, of a repo under its id."""

    counts: dict[str | None, _Count] = field(default_factory=dict)
    grants: list[_Grant] = field(default_factory=list)

    def used(self, scope: str | None) -> Amount:
        """What was counted, and what was granted and cannot be in that count yet."""
        count = self.counts[scope]
        leases, size_bytes = count.found
        for grant in self.grants:
            if grant.done_at >= count.asked_at and scope in (None, grant.repo_id):
                leases += grant.amount.leases
                size_bytes += grant.amount.size_bytes
        return Amount(leases, size_bytes)

    def tidy(self, now: float) -> None:
        """Drop what newer counts include, and repos that nobody asked for lately."""
        self.counts = {
            scope: count
            for scope, count in self.counts.items()
            if scope is None or now <= count.good_until + _FORGET_SECONDS
        }

        def told(grant: _Grant) -> bool:
            known = (self.counts.get(None), self.counts.get(grant.repo_id))
            return all(one is None or grant.done_at < one.asked_at for one in known)

        self.grants = [one for one in self.grants if one.done_at == math.inf or not told(one)]


class Quotas:
    """The room that is left, as this process knows it. With no limit set nothing is asked."""

    def __init__(
        self,
        database: Database | None,
        policy: LeasePolicy,
        clock: Clock,
        *,
        upload_bytes_max: int,
        observer: Observer = NOBODY,
    ) -> None:
        self._limits = limits_of(policy)
        if database is None and self._limits:
            raise ValueError("quotas need a database to count in")
        self._given = database
        self._clock = clock
        self._observer = observer
        self.upload_bytes_max = upload_bytes_max
        self._books = _Books()
        self._asking = asyncio.Lock()
        self._wanted: set[str] = set()

    @property
    def _database(self) -> Database:
        assert self._given is not None, "with limits there is one"
        return self._given

    async def check(self, repo_id: str) -> None:
        """Refuse at once where not even the smallest lease has room.

        Errors: QuotaReached; DatabaseUnavailable.
        """
        if self._limits:
            await self._counted(repo_id)
            if self._verdict(repo_id, _SMALLEST)[1] is Verdict.FULL:
                await self._refuse(repo_id, _SMALLEST)

    @asynccontextmanager
    async def room(
        self, repo_id: str, wanted: Mapping[str, int], *, in_part: bool = False
    ) -> AsyncIterator[Sequence[str]]:
        """Room for these leases, bytes by mpack_id, for as long as their rows do not say all. The
        block reserves them, and stores and activates what is to be stored.

        Result:  the ids that have room: all, or with `in_part` at least the first of them.
        Errors:  QuotaReached; OverQuota for what would not fit if it were alone;
                 DatabaseUnavailable.
        """
        if not self._limits or not wanted:
            yield list(wanted)
            return
        grant = await self._take(repo_id, wanted, in_part=in_part)
        try:
            yield grant.mpack_ids
        finally:
            grant.done_at = self._clock.monotonic()

    # Giving room away; between the look and the entry nobody else has a turn. --------------------

    async def _take(self, repo_id: str, wanted: Mapping[str, int], *, in_part: bool) -> _Grant:
        ids = list(wanted)
        sums = list(accumulate(wanted.values()))
        for _ in range(_ROUNDS_MAX):
            await self._counted(repo_id)
            count = self._fitting(repo_id, sums) if in_part else len(ids)
            asked = Amount(count, sums[count - 1]) if count else Amount(1, sums[0])
            _limit, verdict = self._verdict(repo_id, asked)
            if verdict is Verdict.FITS:
                return self._enter(repo_id, ids[:count], asked)
            if verdict is Verdict.FULL:
                await self._refuse(repo_id, asked)
            known = [self._books.counts[scope].good_until for scope in self._scopes(repo_id)]
            await self._clock.sleep(max(0.0, max(known) - self._clock.monotonic()))
        raise QuotaReached("Too many ask for the room that is left; try again shortly.")

    def _scopes(self, repo_id: str) -> list[str | None]:
        """Whose counts the limits need."""
        return list({_scope(limit, repo_id): None for limit in self._limits})

    def _fitting(self, repo_id: str, sums: Sequence[int]) -> int:
        """How many of these fit, the first ones first; their bytes are summed up."""
        fitting = len(sums)
        for limit in self._limits:
            left = limit.at_most - limit.of(self._books.used(_scope(limit, repo_id)))
            fitting = min(fitting, bisect_right(sums, left) if limit.in_bytes else max(0, left))
        return fitting

    def _verdict(self, repo_id: str, asked: Amount) -> tuple[Limit, Verdict]:
        """The strictest limit's."""
        used = {scope: self._books.used(scope) for scope in self._scopes(repo_id)}
        verdicts = []
        for limit in self._limits:
            scope = _scope(limit, repo_id)
            count = self._books.counts[scope]
            verdict = judge(
                limit.at_most,
                used=limit.of(used[scope]),
                granted=limit.of(count.granted),
                asked=limit.of(asked),
                replicas=count.replicas,
            )
            verdicts.append((limit, verdict))
        strictness = list(Verdict).index
        return max(verdicts, key=lambda found: strictness(found[1]))

    def _enter(self, repo_id: str, mpack_ids: Sequence[str], amount: Amount) -> _Grant:
        grant = _Grant(repo_id=repo_id, mpack_ids=mpack_ids, amount=amount)
        self._books.grants.append(grant)
        for scope in self._scopes(repo_id):
            count = self._books.counts[scope]
            leases, size_bytes = count.granted
            count.granted = Amount(leases + amount.leases, size_bytes + amount.size_bytes)
        return grant

    async def _refuse(self, repo_id: str, asked: Amount) -> NoReturn:
        limit, _verdict = self._verdict(repo_id, asked)
        self._observer.quota_reached(limit.name)
        if limit.of(asked) > limit.at_most:
            raise OverQuota(f"{limit.in_words()}; this alone would be more.", quota=limit.name)
        scope = _scope(limit, repo_id)
        lacking = limit.of(self._books.used(scope)) + limit.of(asked) - limit.at_most
        seconds = seconds_until_free(
            await self._falling_due(scope),
            leases=0 if limit.in_bytes else lacking,
            size_bytes=lacking if limit.in_bytes else 0,
        )
        # A second more: then it is deleted, and counted anew.
        seconds = math.ceil(seconds) + COUNT_SECONDS
        raise QuotaReached(
            f"{limit.in_words()}; come back in {seconds:,.0f} s.",
            quota=limit.name,
            retry_after_seconds=seconds,
        )

    # What the database says. ---------------------------------------------------------------------

    async def _counted(self, repo_id: str) -> None:
        """Have counts that are fresh enough. One question at a time, for all who wait."""
        if not any(map(self._stale, self._scopes(repo_id))):
            return
        if repo_id in self._scopes(repo_id):
            self._wanted.add(repo_id)
        async with self._asking:
            scopes = [scope for scope in self._scopes(repo_id) if self._stale(scope)]
            if None in scopes:
                await self._ask(COUNT_ALL, [None])
            if repo_id in scopes:
                wanted, self._wanted = self._wanted | {repo_id}, set()
                await self._ask(COUNT_REPOS, sorted(wanted))
            if scopes:
                self._books.tidy(self._clock.monotonic())

    def _stale(self, scope: str | None) -> bool:
        count = self._books.counts.get(scope)
        return count is None or self._clock.monotonic() >= count.good_until

    async def _ask(self, sql: str, scopes: Sequence[str | None]) -> None:
        granting = [
            mpack_id
            for grant in self._books.grants
            if grant.done_at == math.inf
            for mpack_id in grant.mpack_ids
        ]
        asked_at = self._clock.monotonic()
        args = [granting] if scopes == [None] else [granting, scopes]
        rows = await self._database.fetch(sql, *args)
        took = self._clock.monotonic() - asked_at
        for row in rows:
            size_bytes = row["size_bytes"] + row["uploads"] * self.upload_bytes_max
            self._books.counts[row["repo_id"]] = _Count(
                asked_at=asked_at,
                took_seconds=took,
                found=Amount(row["leases"], size_bytes),
                replicas=row["replicas"],
            )

    async def _falling_due(self, scope: str | None) -> Sequence[tuple[float, int]]:
        """What falls due next; asked for once for each count."""
        count = self._books.counts[scope]
        if count.falling_due is None:
            sql, more = (DUE_OF_ALL, []) if scope is None else (DUE_OF_REPO, [scope])
            rows = await self._database.fetch(sql, self.upload_bytes_max, _FALLING_DUE_MAX, *more)
            count.falling_due = [(row["seconds"], row["size_bytes"]) for row in rows]
        return count.falling_due


def _scope(limit: Limit, repo_id: str) -> str | None:
    return repo_id if limit.per_repo else None
