"""Grant, move and end leases: load, decide, append under guards.

Nothing here touches a blob. Whoever holds the answer acts after the commit.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any

from leases.codec import JSON, encode
from leases.decide import decide, evolve, guards
from leases.errors import Unavailable, VersionConflict
from leases.ledger import Ledger
from leases.log import EVENTS_PER_CALL_MAX, EventLog, NewEvent
from leases.lookups import Found, Lookups
from leases.model import (
    ActivateLease,
    Command,
    Event,
    ExtendReservation,
    ForgetLease,
    Lease,
    LeaseKind,
    LeaseState,
    Outcome,
    RenewLease,
    ReserveLease,
    RetryLease,
    RevokeLease,
    storage_key,
)
from leases.policy import LeasePolicy
from leases.ports import BlobStore, signing_end

# Every conflict means that another command of the same lease got through; a lease has few of them.
_DECISIONS_MAX = 5

# The fold columns, in the order of the table, without last_position.
_LEASE_FIELDS = tuple(field.name for field in fields(Lease))
LEASE_COLUMNS = ", ".join(_LEASE_FIELDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks, for the log: an actor such as `token:<id>` or `reaper`, and the request's id."""

    actor: str
    request_id: str | None = None


def lease_of(row: Any) -> Lease:
    """A row that has the fold columns, as a value."""
    values = {name: row[name] for name in _LEASE_FIELDS}
    values["kind"] = LeaseKind(values["kind"])
    values["state"] = LeaseState(values["state"])
    values["outcome"] = None if values["outcome"] is None else Outcome(values["outcome"])
    return Lease(**values)


def lease_stream(mpack_id: str) -> str:
    """The stream that holds a lease's events."""
    return f"lease/{mpack_id}"


def new_lease_event(
    mpack_id: str, event: Event, *, caller: Caller, replica: str, **options: Any
) -> NewEvent:
    """A lease's fact, ready to be appended; `options` are NewEvent's version and guards."""
    data: dict[str, JSON] = {**encode(event), "replica": replica}
    return NewEvent(
        stream=lease_stream(mpack_id),
        type=event.type,
        data=data,
        actor=caller.actor,
        request_id=caller.request_id,
        **options,
    )


class Lessor:
    """Carries out what callers ask of leases.

    Errors of all methods: LeaseMissing, LeaseEnded, InvalidRequest from the decision;
    DeadlinePassed and ClaimHeld from the guards; Unavailable. The store is asked for nothing but
    when its signing keys end.
    """

    def __init__(
        self,
        ledger: Ledger,
        log: EventLog,
        policy: LeasePolicy,
        *,
        lookups: Lookups,
        store: BlobStore,
        log_id: str,
        replica: str,
    ) -> None:
        self._ledger = ledger
        self._log = log
        self._lookups = lookups
        self._policy = policy
        self._store = store
        self._log_id = log_id
        self._replica = replica

    async def load(self, mpack_id: str) -> Found:
        """The lease as it stands, and the database's now."""
        return await self._lookups.load(mpack_id)

    async def reserve(
        self,
        *,
        mpack_id: str,
        kind: LeaseKind,
        repo_id: str,
        caller: Caller,
        cache_key: str | None = None,
        object_id: str | None = None,
        size_bytes: int | None = None,
    ) -> Lease:
        """Stand the row before the blob; the blob must be there before `delete_at`. Quotas count
        `size_bytes`, what is planned, until it is.
        """
        command = ReserveLease(
            kind=kind,
            repo_id=repo_id,
            object_id=object_id,
            cache_key=cache_key,
            size_bytes=size_bytes,
            storage_key=storage_key(self._log_id, mpack_id),
            upload_limit_seconds=self._policy.upload_limit_seconds,
        )
        return await self.carry_out(mpack_id, command, caller=caller)

    async def reserve_uploads(
        self, object_ids: Mapping[str, str], *, repo_id: str, caller: Caller
    ) -> AsyncIterator[Lease]:
        """Stand a row for every blob that somebody else will upload: object ids by mpack_id.

        A URL to upload it may live for `upload_limit_seconds`; the blob lives for
        `upload_grace_seconds` more, so that what was begun in time can end, and be pushed.

        Effects: a thousand events in each append, and its leases before the next one: to make a
                 hundred thousand takes seconds, in which nothing else would run. Should a later
                 append fail, the rows of the earlier ones fall due unused.
        """
        waiting = iter(object_ids.items())
        while batch := list(islice(waiting, EVENTS_PER_CALL_MAX)):
            now = (await self._log.head())["now"]
            leases: list[Lease] = []
            facts: list[NewEvent] = []
            for mpack_id, object_id in batch:
                command = self._upload(mpack_id, object_id, repo_id=repo_id)
                (event,) = decide(None, command, now=now)
                leases.append(evolve(None, event, mpack_id=mpack_id))
                facts.append(
                    new_lease_event(
                        mpack_id, event, caller=caller, replica=self._replica, expected_version=0
                    )
                )
            await self._log.append(facts)
            for lease in leases:
                yield lease

    def _upload(self, mpack_id: str, object_id: str, *, repo_id: str) -> ReserveLease:
        policy = self._policy
        return ReserveLease(
            kind=LeaseKind.UPLOAD,
            repo_id=repo_id,
            object_id=object_id,
            storage_key=storage_key(self._log_id, mpack_id),
            upload_limit_seconds=policy.upload_limit_seconds + policy.upload_grace_seconds,
        )

    async def extend(self, mpack_id: str, *, caller: Caller) -> Lease:
        """Move a reservation's deadline on by the upload limit, counted from now."""
        command = ExtendReservation(
            upload_limit_seconds=self._policy.upload_limit_seconds,
            lease_life_max_seconds=self._policy.lease_life_max_seconds,
        )
        return await self.carry_out(mpack_id, command, caller=caller)

    async def activate(
        self, mpack_id: str, *, sha256: str, size_bytes: int, ttl_seconds: float, caller: Caller
    ) -> Lease:
        """Begin the promise: the blob is complete, and lives `ttl_seconds` from now."""
        command = ActivateLease(
            sha256=sha256,
            size_bytes=size_bytes,
            ttl_seconds=min(ttl_seconds, self._policy.ttl_max_seconds),
            grace_seconds=self._policy.grace_seconds,
            lease_life_max_seconds=self._policy.lease_life_max_seconds,
            signing_ends_at=await signing_end(self._store),
        )
        return await self.carry_out(mpack_id, command, caller=caller)

    async def renew(
        self,
        mpack_id: str,
        *,
        ttl_seconds: float,
        caller: Caller,
        guard_seconds: float | None = None,
    ) -> Lease:
        """Let the promise last at least `ttl_seconds` from now, within the lease's longest life.

        With less than `guard_seconds` of life it is too late; by default what sharing demands.
        """
        ttl_seconds = min(ttl_seconds, self._policy.ttl_max_seconds)
        command = RenewLease(
            ttl_seconds=ttl_seconds,
            guard_seconds=(
                self._policy.share_guard(ttl_seconds) if guard_seconds is None else guard_seconds
            ),
            grace_seconds=self._policy.grace_seconds,
            lease_life_max_seconds=self._policy.lease_life_max_seconds,
            signing_ends_at=await signing_end(self._store),
        )
        return await self.carry_out(mpack_id, command, caller=caller)

    async def revoke(self, mpack_id: str, *, reason: str, caller: Caller) -> Lease:
        """End the promise now; the blob goes as if its deadline had come."""
        return await self.carry_out(mpack_id, RevokeLease(reason=reason), caller=caller)

    async def forget(self, mpack_id: str, *, reason: str, caller: Caller) -> Lease:
        """Close a due lease whose blob cannot be deleted; the blob is nobody's from then on."""
        return await self.carry_out(mpack_id, ForgetLease(reason=reason), caller=caller)

    async def retry(self, mpack_id: str, *, caller: Caller) -> Lease:
        """Let the next attempt come now, and the pauses behind it begin anew.

        The fact stands before the row's notes: after a crash in between asking again helps.
        """
        command = RetryLease(attempts=await self._ledger.attempts(mpack_id))
        lease = await self.carry_out(mpack_id, command, caller=caller)
        await self._ledger.forget_attempts(mpack_id)
        return lease

    async def carry_out(self, mpack_id: str, command: Command, *, caller: Caller) -> Lease:
        """Load, decide, append; again from the start when somebody else was faster."""
        for _ in range(_DECISIONS_MAX):
            lease, now = await self.load(mpack_id)
            events = decide(lease, command, now=now)
            if not events:
                assert lease is not None
                return lease
            guard = guards(lease, command)
            (event,) = events
            fact = new_lease_event(
                mpack_id,
                event,
                caller=caller,
                replica=self._replica,
                expected_version=lease.version if lease else 0,
                not_after=guard.not_after,
                no_claim=guard.no_claim,
            )
            try:
                await self._log.append([fact])
            except VersionConflict:
                continue
            return evolve(lease, event, mpack_id=mpack_id)
        raise Unavailable("This lease is changing too quickly; try again shortly.")
