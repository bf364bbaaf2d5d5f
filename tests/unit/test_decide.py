"""What may become of a lease, as a table: every state against every command."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from leases.decide import Guards, decide, evolve, guards
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
    storage_key,
)

T0 = datetime(2026, 1, 1, tzinfo=UTC)
DAY = 24 * 3600.0


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


RESERVE = ReserveLease(
    kind=LeaseKind.PACK,
    repo_id="r",
    storage_key=storage_key("log", "m"),
    upload_limit_seconds=600,
)
ADOPT = AdoptLease(
    repo_id="", storage_key="transient/log/m", made_at=T0, lease_life_max_seconds=DAY
)
EXTEND = ExtendReservation(upload_limit_seconds=600, lease_life_max_seconds=DAY)
ACTIVATE = ActivateLease(
    sha256="aa", size_bytes=7, ttl_seconds=300, grace_seconds=5, lease_life_max_seconds=DAY
)
RENEW = RenewLease(ttl_seconds=300, guard_seconds=15, grace_seconds=5, lease_life_max_seconds=DAY)
REVOKE = RevokeLease(reason="asked for")
RECLAIM = RecordReclaim(outcome=Outcome.DELETED, trigger=Trigger.ALARM)
FORGET = ForgetLease(reason="lost bucket")
RETRY = RetryLease(attempts=3)
FAIL = RecordFailure(error="it broke", attempts=1, noted_before=False, stuck_after_attempts=8)
RESIDUE = RecordResidue(size_bytes=7)


def after(lease: Lease | None, command: Command, now: datetime) -> Lease:
    (event,) = decide(lease, command, now=now)
    return evolve(lease, event, mpack_id="m")


RESERVED = after(None, RESERVE, T0)
ADOPTED = after(None, ADOPT, T0)
ACTIVE = after(RESERVED, ACTIVATE, at(10))  # expires at 310, deleted at 315
REVOKED = after(ACTIVE, REVOKE, at(20))
STUCK = after(ACTIVE, replace(FAIL, attempts=8), at(400))
RECLAIMED = after(ACTIVE, RECLAIM, at(316))
FORGOTTEN = after(STUCK, FORGET, at(500))

TABLE: dict[str, tuple[Lease | None, Command, float, tuple[Event, ...] | type[Exception]]] = {
    "reserve nothing": (
        None,
        replace(RESERVE, object_id="o", cache_key="c", size_bytes=9),
        0,
        (
            LeaseReserved(
                kind=LeaseKind.PACK,
                repo_id="r",
                storage_key="transient/log/m",
                granted_at=T0,
                delete_at=at(600),
                object_id="o",
                cache_key="c",
                size_bytes=9,
            ),
        ),
    ),
    "reserve twice": (RESERVED, RESERVE, 1, InvalidRequest),
    "adopt": (
        None,
        ADOPT,
        50,
        (
            LeaseAdopted(
                kind=LeaseKind.PACK,
                repo_id="",
                storage_key="transient/log/m",
                granted_at=T0,
                delete_at=at(DAY),
            ),
        ),
    ),
    "adopt what has a row": (ACTIVE, ADOPT, 50, ()),
    "activate nothing": (None, ACTIVATE, 0, LeaseMissing),
    "activate": (
        RESERVED,
        ACTIVATE,
        10,
        (
            LeaseActivated(
                sha256="aa",
                size_bytes=7,
                activated_at=at(10),
                expires_at=at(310),
                delete_at=at(315),
                ttl_seconds=300,
            ),
        ),
    ),
    "activate at the deadline": (RESERVED, ACTIVATE, 600, LeaseEnded),
    "activate again": (ACTIVE, ACTIVATE, 20, ()),
    "activate with other bytes": (ACTIVE, replace(ACTIVATE, sha256="bb"), 20, LeaseEnded),
    "activate what ended": (RECLAIMED, ACTIVATE, 320, LeaseEnded),
    "activate for no time": (RESERVED, replace(ACTIVATE, ttl_seconds=0), 1, InvalidRequest),
    "activate for a NaN": (
        RESERVED,
        replace(ACTIVATE, ttl_seconds=float("nan")),
        1,
        InvalidRequest,
    ),
    "activate with keys that end before": (
        RESERVED,
        replace(ACTIVATE, signing_ends_at=at(110)),
        10,
        (
            LeaseActivated(
                sha256="aa",
                size_bytes=7,
                activated_at=at(10),
                expires_at=at(110),
                delete_at=at(115),
                ttl_seconds=300,
            ),
        ),
    ),
    "activate with dead keys": (
        RESERVED,
        replace(ACTIVATE, signing_ends_at=at(10)),
        10,
        LeaseEnded,
    ),
    "renew no longer than the keys live": (
        ACTIVE,
        replace(RENEW, signing_ends_at=at(400)),
        200,
        (LeaseRenewed(expires_at=at(400), delete_at=at(405)),),
    ),
    "renew with keys that end before": (ACTIVE, replace(RENEW, signing_ends_at=at(210)), 200, ()),
    "activate past the longest life": (
        RESERVED,
        replace(ACTIVATE, lease_life_max_seconds=100),
        10,
        (
            LeaseActivated(
                sha256="aa",
                size_bytes=7,
                activated_at=at(10),
                expires_at=at(100),
                delete_at=at(105),
                ttl_seconds=300,
            ),
        ),
    ),
    "activate after the longest life": (
        RESERVED,
        replace(ACTIVATE, lease_life_max_seconds=100),
        100,
        LeaseEnded,
    ),
    "extend": (RESERVED, EXTEND, 100, (LeaseRenewed(delete_at=at(700)),)),
    "extend at once": (RESERVED, EXTEND, 0, ()),
    "extend at the deadline": (RESERVED, EXTEND, 600, LeaseEnded),
    "extend an active lease": (ACTIVE, EXTEND, 20, LeaseEnded),
    "extend past the longest life": (
        RESERVED,
        replace(EXTEND, lease_life_max_seconds=650),
        500,
        (LeaseRenewed(delete_at=at(650)),),
    ),
    "renew": (ACTIVE, RENEW, 200, (LeaseRenewed(expires_at=at(500), delete_at=at(505)),)),
    "renew to an earlier time": (ACTIVE, replace(RENEW, ttl_seconds=10), 20, ()),
    "renew inside the guard": (ACTIVE, RENEW, 295, LeaseEnded),
    "renew just before the guard": (
        ACTIVE,
        RENEW,
        294,
        (LeaseRenewed(expires_at=at(594), delete_at=at(599)),),
    ),
    "renew at the longest life": (ACTIVE, replace(RENEW, lease_life_max_seconds=310), 200, ()),
    "renew never moves the deletion back": (
        ACTIVE,
        replace(RENEW, ttl_seconds=111, grace_seconds=0),
        200,
        (LeaseRenewed(expires_at=at(311), delete_at=at(315)),),
    ),
    "renew a reservation": (RESERVED, RENEW, 1, LeaseEnded),
    "renew what was revoked": (REVOKED, RENEW, 20, LeaseEnded),
    "revoke": (
        ACTIVE,
        REVOKE,
        20,
        (LeaseRevoked(revoked_at=at(20), expires_at=at(20), delete_at=at(20), reason="asked for"),),
    ),
    "revoke twice": (REVOKED, REVOKE, 20, ()),
    "revoke what is due": (ACTIVE, REVOKE, 315, ()),
    "revoke what ended": (RECLAIMED, REVOKE, 320, ()),
    "reclaim before the deadline": (ACTIVE, RECLAIM, 314.999, InvalidRequest),
    "reclaim": (
        ACTIVE,
        RECLAIM,
        315.0125,
        (
            LeaseReclaimed(
                outcome=Outcome.DELETED,
                trigger=Trigger.ALARM,
                reclaimed_at=at(315.0125),
                lateness_ms=12,
            ),
        ),
    ),
    "reclaim twice": (RECLAIMED, RECLAIM, 320, ()),
    "forget before the deadline": (ACTIVE, FORGET, 20, InvalidRequest),
    "forget": (
        STUCK,
        FORGET,
        316,
        (
            LeaseReclaimed(
                outcome=Outcome.FORGOTTEN,
                trigger=Trigger.COMMAND,
                reclaimed_at=at(316),
                lateness_ms=1000,
                reason="lost bucket",
            ),
        ),
    ),
    "forget twice": (FORGOTTEN, FORGET, 520, ()),
    "forget what was deleted": (RECLAIMED, FORGET, 320, LeaseEnded),
    "retry": (STUCK, RETRY, 500, (LeaseRetried(attempts=3),)),
    "retry what never failed": (ACTIVE, replace(RETRY, attempts=0), 500, ()),
    "retry before the deadline": (ACTIVE, RETRY, 20, InvalidRequest),
    "retry what ended": (FORGOTTEN, RETRY, 520, LeaseEnded),
    "fail the first time": (ACTIVE, FAIL, 316, (LeaseCleanupFailed(error="it broke"),)),
    "fail again": (ACTIVE, replace(FAIL, attempts=2, noted_before=True), 316, ()),
    "fail so often that it is stuck": (
        ACTIVE,
        replace(FAIL, attempts=8, noted_before=True),
        400,
        (LeaseStuck(error="it broke", attempts=8),),
    ),
    "fail when stuck": (STUCK, replace(FAIL, attempts=9, noted_before=True), 500, ()),
    "fail before the deadline": (ACTIVE, FAIL, 20, InvalidRequest),
    "fail after the end": (RECLAIMED, FAIL, 320, ()),
    "residue after the end": (RECLAIMED, RESIDUE, 320, (LeaseResidueDeleted(found_bytes=7),)),
    "residue of an open lease": (ACTIVE, RESIDUE, 320, InvalidRequest),
}


@pytest.mark.parametrize("name", TABLE)
def test_decide(name: str) -> None:
    lease, command, seconds, expected = TABLE[name]
    if isinstance(expected, tuple):
        assert decide(lease, command, now=at(seconds)) == expected
    else:
        with pytest.raises(expected):
            decide(lease, command, now=at(seconds))


@pytest.mark.parametrize(
    "command",
    [EXTEND, RENEW, REVOKE, RECLAIM, FORGET, RETRY, FAIL, RESIDUE],
    ids=lambda c: type(c).__name__,
)
def test_a_command_to_nothing_is_refused(command: Command) -> None:
    with pytest.raises(LeaseMissing):
        decide(None, command, now=T0)


def test_an_id_from_the_future_is_adopted_as_if_made_now() -> None:
    """The id carries the clock of whoever made it."""
    lease = after(None, replace(ADOPT, made_at=at(1000)), at(10))
    assert lease.delete_at == at(10 + DAY)


@pytest.mark.parametrize(
    "lease, command, expected",
    [
        (None, RESERVE, Guards()),
        (None, ADOPT, Guards()),
        (RESERVED, ACTIVATE, Guards(not_after=at(600), no_claim=True)),
        (RESERVED, EXTEND, Guards(not_after=at(600), no_claim=True)),
        (ACTIVE, RENEW, Guards(not_after=at(295), no_claim=True)),
        (ACTIVE, REVOKE, Guards(no_claim=True)),
        (STUCK, FORGET, Guards(no_claim=True)),
        (STUCK, RETRY, Guards(no_claim=True)),
        (ACTIVE, RECLAIM, Guards()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_guards_repeat_the_decision_under_the_lock(
    lease: Lease | None, command: Command, expected: Guards
) -> None:
    assert guards(lease, command) == expected


def test_the_fold_of_a_whole_life() -> None:
    renewed = after(ACTIVE, RENEW, at(200))
    failed = after(renewed, FAIL, at(506))
    stuck = after(failed, replace(FAIL, attempts=8), at(600))
    retried = after(stuck, RETRY, at(650))
    ended = after(retried, RECLAIM, at(700))
    assert (failed.stuck, stuck.stuck, retried.stuck, ended.stuck) == (False, True, True, False)
    assert after(ended, RESIDUE, at(800)) == replace(ended, version=ended.version + 1)
    assert ended == Lease(
        mpack_id="m",
        kind=LeaseKind.PACK,
        repo_id="r",
        storage_key="transient/log/m",
        state=LeaseState.RECLAIMED,
        sha256="aa",
        size_bytes=7,
        granted_at=T0,
        activated_at=at(10),
        expires_at=at(500),
        delete_at=at(505),
        reclaimed_at=at(700),
        outcome=Outcome.DELETED,
        lateness_ms=195_000,
        version=7,
    )


def test_a_reservation_that_is_extended_still_promises_nothing() -> None:
    extended = after(RESERVED, EXTEND, at(100))
    assert (extended.state, extended.expires_at) == (LeaseState.RESERVED, None)


def test_a_stream_begins_once() -> None:
    (event,) = decide(None, RESERVE, now=T0)
    with pytest.raises(AssertionError):
        evolve(RESERVED, event, mpack_id="m")


def test_a_stream_begins_with_a_reservation() -> None:
    with pytest.raises(AssertionError):
        evolve(None, LeaseCleanupFailed(error="it broke"), mpack_id="m")


def test_an_adopted_lease_is_a_reservation() -> None:
    assert (ADOPTED.state, ADOPTED.expires_at, ADOPTED.version) == (LeaseState.RESERVED, None, 1)
