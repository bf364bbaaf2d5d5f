"""Laws of `decide` and `evolve` that hold for whatever is asked of a lease, in any order."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from leases.codec import decode, dump, encode
from leases.decide import decide, evolve, guards
from leases.errors import Failure
from leases.model import (
    ActivateLease,
    AdoptLease,
    Command,
    Event,
    ExtendReservation,
    ForgetLease,
    Lease,
    LeaseKind,
    LeaseState,
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

T0 = datetime(2026, 1, 1, tzinfo=UTC)
LIFE_MAX = 1000.0
GRACE = 5.0
RANKS = {LeaseState.RESERVED: 0, LeaseState.ACTIVE: 1, LeaseState.RECLAIMED: 2}

seconds = st.floats(0, 1500, allow_nan=False)
ttls = st.floats(-1, 1500, allow_nan=False)
digests = st.sampled_from(["aa", "bb"])


def of(wish: type[Any], /, **fields: Any) -> st.SearchStrategy[Any]:
    made = {
        name: value if isinstance(value, st.SearchStrategy) else st.just(value)
        for name, value in fields.items()
    }
    return st.builds(wish, **made)


commands: st.SearchStrategy[Command] = st.one_of(
    of(
        ReserveLease,
        kind=LeaseKind.PACK,
        repo_id="r",
        storage_key="transient/l/m",
        upload_limit_seconds=st.floats(1, 600),
        size_bytes=st.sampled_from([None, 5, 9]),
    ),
    of(
        AdoptLease,
        repo_id="",
        storage_key="transient/l/m",
        made_at=st.just(T0),
        lease_life_max_seconds=LIFE_MAX,
    ),
    of(
        ExtendReservation,
        upload_limit_seconds=st.floats(1, 600),
        lease_life_max_seconds=LIFE_MAX,
    ),
    of(
        ActivateLease,
        sha256=digests,
        size_bytes=7,
        ttl_seconds=ttls,
        grace_seconds=GRACE,
        lease_life_max_seconds=LIFE_MAX,
    ),
    of(
        RenewLease,
        ttl_seconds=ttls,
        guard_seconds=st.sampled_from([0.0, 2.0]),
        grace_seconds=GRACE,
        lease_life_max_seconds=LIFE_MAX,
    ),
    of(RevokeLease, reason="asked for"),
    of(
        RecordReclaim,
        outcome=st.sampled_from([Outcome.DELETED, Outcome.ALREADY_GONE]),
        trigger=st.sampled_from(Trigger),
    ),
    of(ForgetLease, reason="lost"),
    of(RetryLease, attempts=st.integers(0, 9)),
    of(
        RecordFailure,
        error="it broke",
        attempts=st.integers(1, 10),
        noted_before=st.booleans(),
        stuck_after_attempts=8,
    ),
    of(RecordResidue, size_bytes=7),
)
scripts = st.lists(st.tuples(seconds, commands), max_size=25)


def carry_out(
    lease: Lease | None, command: Command, now: datetime
) -> tuple[Lease | None, tuple[Event, ...]]:
    try:
        events = decide(lease, command, now=now)
    except Failure:
        return lease, ()
    for event in events:
        lease = evolve(lease, event, mpack_id="m")
    return lease, events


def check_step(
    before: Lease | None, after: Lease | None, command: Command, now: datetime, count: int
) -> None:
    assert count <= 1
    if after is None or count == 0:
        assert after == before
        return
    assert after.version == (before.version if before else 0) + 1
    if after.expires_at is not None:
        assert after.delete_at >= after.expires_at
        assert after.expires_at <= after.granted_at + timedelta(seconds=LIFE_MAX)
    if before is None:
        return
    assert RANKS[after.state] >= RANKS[before.state]
    assert (after.mpack_id, after.storage_key, after.granted_at) == (
        before.mpack_id,
        before.storage_key,
        before.granted_at,
    )
    if not isinstance(command, RevokeLease | ActivateLease):
        assert after.delete_at >= before.delete_at
        assert before.expires_at is None or after.expires_at is not None
    if isinstance(command, RenewLease):
        assert before.expires_at is not None
        assert after.expires_at is not None
        assert after.expires_at > before.expires_at > now
    if before.state is LeaseState.RECLAIMED:
        assert isinstance(command, RecordResidue)
        assert after.state is LeaseState.RECLAIMED
    if after.state is LeaseState.ACTIVE and before.state is LeaseState.RESERVED:
        assert now < before.delete_at
        assert after.expires_at is not None
        assert after.expires_at > now
    if after.state is LeaseState.RECLAIMED and before.state is not LeaseState.RECLAIMED:
        assert now >= before.delete_at
        assert (after.outcome is Outcome.FORGOTTEN) is isinstance(command, ForgetLease)


RESERVE = ReserveLease(
    kind=LeaseKind.PACK, repo_id="r", storage_key="transient/l/m", upload_limit_seconds=1600
)
LATE = ActivateLease(
    sha256="aa", size_bytes=7, ttl_seconds=1, grace_seconds=GRACE, lease_life_max_seconds=LIFE_MAX
)


@given(scripts)
# An upload limit above the longest life let a lease become active that had already expired.
@example([(0.0, RESERVE), (1200.0, LATE)])
def test_whatever_is_asked_in_whatever_order(script: list[tuple[float, Command]]) -> None:
    now = T0
    lease: Lease | None = None
    for step, command in script:
        now += timedelta(seconds=step)
        after, events = carry_out(lease, command, now)
        check_step(lease, after, command, now, len(events))
        lease = after


@given(scripts)
def test_a_repeat_of_a_finished_command_does_nothing(
    script: list[tuple[float, Command]],
) -> None:
    """An answer that was lost is asked for again at the same moment."""
    now = T0
    lease: Lease | None = None
    for step, command in script:
        now += timedelta(seconds=step)
        lease, events = carry_out(lease, command, now)
        if events and not isinstance(command, RecordFailure | RetryLease | RecordResidue):
            assert carry_out(lease, command, now) == (lease, ())


@given(scripts)
def test_every_event_survives_its_stored_form(script: list[tuple[float, Command]]) -> None:
    now = T0
    lease: Lease | None = None
    for step, command in script:
        now += timedelta(seconds=step)
        lease, events = carry_out(lease, command, now)
        for event in events:
            assert decode(event.type, 1, dump(encode(event))) == event


@given(scripts)
def test_guards_never_allow_what_the_decision_forbids(
    script: list[tuple[float, Command]],
) -> None:
    """What may be recorded last is still before the lease's deadline."""
    now = T0
    lease: Lease | None = None
    for step, command in script:
        now += timedelta(seconds=step)
        after, events = carry_out(lease, command, now)
        if events:
            guard = guards(lease, command)
            if guard.not_after is not None:
                assert lease is not None
                assert now <= guard.not_after <= lease.delete_at
        lease = after
