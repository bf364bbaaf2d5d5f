"""What may become of a lease: `decide` says it, `evolve` folds it. No I/O, no clock, no chance.

    decide(state, command, now=…) -> events     () = nothing to do (a repeat of a finished command)
    evolve(state, event) -> state               state is None before the first event

An illegal command raises; there is no third case. `now` is the database's clock. What is decided
here is checked once more under the log's head lock (see `guards`), because a decision made before
a deadline may reach the log after it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import assert_never

from leases.errors import InvalidRequest, LeaseEnded, LeaseMissing
from leases.model import (
    ActivateLease,
    AdoptLease,
    Command,
    Event,
    ExtendReservation,
    ForgetLease,
    Lease,
    LeaseActivated,
    LeaseAdopted,
    LeaseCleanupFailed,
    LeaseKind,
    LeaseReclaimed,
    LeaseRenewed,
    LeaseReserved,
    LeaseResidueDeleted,
    LeaseRetried,
    LeaseRevoked,
    LeaseState,
    LeaseStuck,
    Outcome,
    RecordFailure,
    RecordReclaim,
    RecordResidue,
    RenewLease,
    ReserveLease,
    RetryLease,
    RevokeLease,
    Trigger,
)


def decide(lease: Lease | None, command: Command, *, now: datetime) -> tuple[Event, ...]:
    """The events that `command` leads to.

    Errors: LeaseMissing, LeaseEnded (reclaimed, or its deadline has passed), InvalidRequest.
    """
    match command:
        case ReserveLease():
            return _reserve(lease, command, now)
        case AdoptLease():
            return _adopt(lease, command, now)
    if lease is None:
        raise LeaseMissing
    match command:
        case ActivateLease():
            return _activate(lease, command, now)
        case ExtendReservation():
            return _extend(lease, command, now)
        case RenewLease():
            return _renew(lease, command, now)
        case RevokeLease():
            return _revoke(lease, command, now)
        case RecordReclaim():
            return _reclaim(lease, command, now)
        case ForgetLease():
            return _forget(lease, command, now)
        case RetryLease():
            return _retry(lease, command, now)
        case RecordFailure():
            return _failure(lease, command, now)
        case RecordResidue():
            return _residue(lease, command)
        case _:
            assert_never(command)


def _reserve(lease: Lease | None, command: ReserveLease, now: datetime) -> tuple[Event, ...]:
    if lease is not None:
        raise InvalidRequest("This lease has been reserved before.", mpack_id=lease.mpack_id)
    return (
        LeaseReserved(
            kind=command.kind,
            repo_id=command.repo_id,
            object_id=command.object_id,
            storage_key=command.storage_key,
            cache_key=command.cache_key,
            size_bytes=command.size_bytes,
            granted_at=now,
            delete_at=now + timedelta(seconds=command.upload_limit_seconds),
        ),
    )


def _adopt(lease: Lease | None, command: AdoptLease, now: datetime) -> tuple[Event, ...]:
    if lease is not None:
        return ()
    # No promise outlives lease_life_max from its reservation, which came before the blob.
    made_at = min(command.made_at, now)
    return (
        LeaseAdopted(
            kind=LeaseKind.PACK,
            repo_id=command.repo_id,
            storage_key=command.storage_key,
            granted_at=made_at,
            delete_at=made_at + timedelta(seconds=command.lease_life_max_seconds),
        ),
    )


def _life_end(lease: Lease, lease_life_max_seconds: float) -> datetime:
    return lease.granted_at + timedelta(seconds=lease_life_max_seconds)


def _promised(lease: Lease, command: ActivateLease | RenewLease, now: datetime) -> datetime:
    """The end of what is wished, of the lease's longest life, or of the URL's signer."""
    wished = now + timedelta(seconds=command.ttl_seconds)
    longest = min(wished, _life_end(lease, command.lease_life_max_seconds))
    return min(longest, command.signing_ends_at or longest)


def _activate(lease: Lease, command: ActivateLease, now: datetime) -> tuple[Event, ...]:
    if lease.state is LeaseState.ACTIVE and lease.sha256 == command.sha256:
        return ()
    if lease.state is not LeaseState.RESERVED or now >= lease.delete_at:
        raise LeaseEnded(mpack_id=lease.mpack_id)
    if not command.ttl_seconds > 0:
        raise InvalidRequest("ttl_seconds must be above zero.", ttl_seconds=command.ttl_seconds)
    expires_at = _promised(lease, command, now)
    if expires_at <= now:  # An upload limit may reach past the longest life.
        raise LeaseEnded(mpack_id=lease.mpack_id)
    return (
        LeaseActivated(
            sha256=command.sha256,
            size_bytes=command.size_bytes,
            activated_at=now,
            expires_at=expires_at,
            delete_at=expires_at + timedelta(seconds=command.grace_seconds),
            ttl_seconds=command.ttl_seconds,
        ),
    )


def _extend(lease: Lease, command: ExtendReservation, now: datetime) -> tuple[Event, ...]:
    if lease.state is not LeaseState.RESERVED or now >= lease.delete_at:
        raise LeaseEnded(mpack_id=lease.mpack_id)
    wished = now + timedelta(seconds=command.upload_limit_seconds)
    delete_at = min(wished, _life_end(lease, command.lease_life_max_seconds))
    if delete_at <= lease.delete_at:
        return ()
    return (LeaseRenewed(delete_at=delete_at),)


def renewable_until(lease: Lease, guard_seconds: float) -> datetime:
    """The last moment at which a renewal may still be recorded."""
    assert lease.expires_at is not None
    return lease.expires_at - timedelta(seconds=guard_seconds)


def _renew(lease: Lease, command: RenewLease, now: datetime) -> tuple[Event, ...]:
    if lease.state is not LeaseState.ACTIVE or lease.revoked_at is not None:
        raise LeaseEnded(mpack_id=lease.mpack_id)
    assert lease.expires_at is not None
    if now >= renewable_until(lease, command.guard_seconds):
        raise LeaseEnded(mpack_id=lease.mpack_id)
    expires_at = _promised(lease, command, now)
    if expires_at <= lease.expires_at:
        return ()
    delete_at = expires_at + timedelta(seconds=command.grace_seconds)
    return (LeaseRenewed(expires_at=expires_at, delete_at=max(delete_at, lease.delete_at)),)


def _revoke(lease: Lease, command: RevokeLease, now: datetime) -> tuple[Event, ...]:
    if lease.state is LeaseState.RECLAIMED or lease.revoked_at is not None:
        return ()
    if now >= lease.delete_at:
        return ()
    return (LeaseRevoked(revoked_at=now, expires_at=now, delete_at=now, reason=command.reason),)


def _reclaim(lease: Lease, command: RecordReclaim, now: datetime) -> tuple[Event, ...]:
    if lease.state is LeaseState.RECLAIMED:
        return ()
    _check_due(lease, now)
    return (_reclaimed(lease, now, outcome=command.outcome, trigger=command.trigger),)


def _check_due(lease: Lease, now: datetime) -> None:
    if now < lease.delete_at:
        raise InvalidRequest("This lease is not due yet.", mpack_id=lease.mpack_id)


def _reclaimed(
    lease: Lease, now: datetime, *, outcome: Outcome, trigger: Trigger, reason: str | None = None
) -> LeaseReclaimed:
    return LeaseReclaimed(
        outcome=outcome,
        trigger=trigger,
        reclaimed_at=now,
        lateness_ms=max(0, (now - lease.delete_at) // timedelta(milliseconds=1)),
        reason=reason,
    )


def _forget(lease: Lease, command: ForgetLease, now: datetime) -> tuple[Event, ...]:
    if lease.outcome is Outcome.FORGOTTEN:
        return ()
    if lease.state is LeaseState.RECLAIMED:
        raise LeaseEnded(mpack_id=lease.mpack_id)
    # Its URL may still be good: whoever wants it gone now revokes it first.
    _check_due(lease, now)
    return (
        _reclaimed(
            lease,
            now,
            outcome=Outcome.FORGOTTEN,
            trigger=Trigger.COMMAND,
            reason=command.reason,
        ),
    )


def _retry(lease: Lease, command: RetryLease, now: datetime) -> tuple[Event, ...]:
    if lease.state is LeaseState.RECLAIMED:
        raise LeaseEnded(mpack_id=lease.mpack_id)
    _check_due(lease, now)
    return (LeaseRetried(attempts=command.attempts),) if command.attempts else ()


def _failure(lease: Lease, command: RecordFailure, now: datetime) -> tuple[Event, ...]:
    if lease.state is LeaseState.RECLAIMED:
        return ()
    _check_due(lease, now)
    if command.attempts >= command.stuck_after_attempts and not lease.stuck:
        return (LeaseStuck(error=command.error, attempts=command.attempts),)
    if not command.noted_before:
        return (LeaseCleanupFailed(error=command.error),)
    return ()


def _residue(lease: Lease, command: RecordResidue) -> tuple[Event, ...]:
    if lease.state is not LeaseState.RECLAIMED:
        raise InvalidRequest("This lease has not ended.", mpack_id=lease.mpack_id)
    return (LeaseResidueDeleted(found_bytes=command.size_bytes),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Guards:
    """What the log checks under its head lock before it takes an event.

    `not_after`: refused when the database's clock has passed it. `no_claim`: refused while a
    worker may be deleting the blob.
    """

    not_after: datetime | None = None
    no_claim: bool = False


def guards(lease: Lease | None, command: Command) -> Guards:
    """The guards that go with a command decided on this state."""
    match command:
        case ActivateLease() | ExtendReservation():
            assert lease is not None
            return Guards(not_after=lease.delete_at, no_claim=True)
        case RenewLease():
            assert lease is not None
            return Guards(not_after=renewable_until(lease, command.guard_seconds), no_claim=True)
        case RevokeLease() | ForgetLease() | RetryLease():
            return Guards(no_claim=True)
        case _:
            return Guards()


def evolve(lease: Lease | None, event: Event, *, mpack_id: str) -> Lease:
    """The state after `event`."""
    if isinstance(event, LeaseReserved | LeaseAdopted):
        assert lease is None
        return Lease(
            mpack_id=mpack_id,
            kind=event.kind,
            repo_id=event.repo_id,
            object_id=event.object_id if isinstance(event, LeaseReserved) else None,
            storage_key=event.storage_key,
            cache_key=event.cache_key if isinstance(event, LeaseReserved) else None,
            size_bytes=event.size_bytes if isinstance(event, LeaseReserved) else None,
            state=LeaseState.RESERVED,
            granted_at=event.granted_at,
            delete_at=event.delete_at,
            version=1,
        )
    assert lease is not None
    after = replace(lease, version=lease.version + 1)
    match event:
        case LeaseActivated():
            return replace(
                after,
                state=LeaseState.ACTIVE,
                sha256=event.sha256,
                size_bytes=event.size_bytes,
                activated_at=event.activated_at,
                expires_at=event.expires_at,
                delete_at=event.delete_at,
            )
        case LeaseRenewed():
            return replace(
                after,
                expires_at=event.expires_at or lease.expires_at,
                delete_at=event.delete_at,
            )
        case LeaseRevoked():
            return replace(
                after,
                revoked_at=event.revoked_at,
                expires_at=event.expires_at,
                delete_at=event.delete_at,
            )
        case LeaseStuck():
            return replace(after, stuck=True)
        case LeaseReclaimed():
            return replace(
                after,
                state=LeaseState.RECLAIMED,
                stuck=False,
                reclaimed_at=event.reclaimed_at,
                outcome=event.outcome,
                lateness_ms=event.lateness_ms,
            )
        case LeaseCleanupFailed() | LeaseRetried() | LeaseResidueDeleted():
            return after
        case _:
            assert_never(event)
