"""What must hold: looked at with every effect on database and store, and once more at rest.

I1 nothing is deleted before its deadline, by the database's clock; I2 at rest the store holds what
open leases hold; I3 exactly one end is recorded; I5 what was promised is there until it expires; I7
table and chain are the log; I8 leases move forward; I9 without a fault a cleanup is a second late
at most, and after a fault no longer than its kind may take.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from leases.chain import StoredEvent, event_hash, genesis
from leases.codec import decode
from leases.decide import evolve
from leases.model import (
    Lease,
    LeaseActivated,
    LeaseReclaimed,
    LeaseRenewed,
    LeaseState,
    LeaseStuck,
    Outcome,
)
from leases.owner import OWNER_KEY
from leases.policy import LeasePolicy
from tests.simulation.records import Records
from tests.simulation.store import Blobs

LATE_MAX = timedelta(seconds=1)
# The reaper's time is an estimate of the database's: as exact as a quick answer, and never ahead.
_AHEAD_MAX = timedelta(milliseconds=10)
_BEHIND_MAX = timedelta(milliseconds=100)
# A replica looks twice a second, and ends the batch that it is at.
_OBEYED_WITHIN = timedelta(seconds=6)
_RANKS = {LeaseState.RESERVED: 0, LeaseState.ACTIVE: 1, LeaseState.RECLAIMED: 2}


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was broken, and the lease it was broken for."""

    what: str
    about: str


class FaultBetween(Protocol):
    """Whether anything was wrong between two times: of this kind, of any `but` that."""

    def __call__(
        self, since: datetime, until: datetime, kind: str = "", *, but: str = ""
    ) -> bool: ...


@dataclass(slots=True)
class Oracle:
    """`fault_between` says whether anything was wrong in a span of time, or had to be got over."""

    records: Records
    blobs: Blobs
    policy: LeasePolicy
    fault_between: FaultBetween
    violations: list[Violation] = field(default_factory=list)
    lateness_ms_max_calm: int = 0
    ends: int = 0
    ever_locked: set[str] = field(default_factory=set)
    strangers: set[str] = field(default_factory=set)
    _leases: dict[str, Lease] = field(default_factory=dict)
    _returned: set[str] = field(default_factory=set)
    _gone_at: dict[str, datetime] = field(default_factory=dict)
    _paused_at: datetime | None = None

    def _lease(self, mpack_id: str) -> Lease | None:
        row = self.records.rows.get(mpack_id)
        return row.lease if row else None

    def complain(self, what: str, about: str) -> None:
        self.violations.append(Violation(what, about))

    # With every effect. --------------------------------------------------------------------------

    def before_delete(self, key: str) -> None:
        """I1 and I5: the row as it stands, the database's clock, the blob that is about to go."""
        mpack_id = key.rpartition("/")[2]
        lease, now = self._lease(mpack_id), self.records.clock()
        self._while_paused(now, mpack_id)
        if key in self.blobs.sizes:
            self._gone_at.setdefault(key, now)
        if lease is None:
            if key in self.blobs.sizes:
                self.complain(f"I4: {key} is deleted without a row", mpack_id)
        elif now < lease.delete_at:
            self.complain(f"I1: deleted at {now}, before {lease.delete_at}", mpack_id)
        elif lease.outcome is Outcome.FORGOTTEN and lease.activated_at is not None:
            # A builder that comes too late deletes its own, which nobody was told of.
            self.complain("a forgotten blob is deleted", mpack_id)

    def _while_paused(self, now: datetime, mpack_id: str) -> None:
        since = self._paused_at
        if since is None or now - since < _OBEYED_WITHIN:
            return
        row = self.records.rows.get(mpack_id)
        if row is None or row.claimed_by is None:
            return  # A builder's own, which came too late.
        if not self.fault_between(since, now, but="operator's pause"):
            self.complain(f"deleted at {now}, and reaping was paused at {since}", mpack_id)

    def stored(self, key: str) -> None:
        """A blob that came back after the end of its lease may be found as residue."""
        lease = self._lease(key.rpartition("/")[2])
        if lease is not None and lease.state is LeaseState.RECLAIMED:
            self._returned.add(lease.mpack_id)

    def appended(self, event: StoredEvent) -> None:
        """The fold of our own, and what each fact must not do."""
        kind, _, mpack_id = event.stream.partition("/")
        if event.type == "reaping.paused":
            self._paused_at = event.recorded_at
        elif event.type == "reaping.resumed":
            self._paused_at = None
        if kind != "lease":
            return
        fact = decode(event.type, event.schema_version, event.data)
        before = self._leases.get(mpack_id)
        after = self._leases[mpack_id] = evolve(before, fact, mpack_id=mpack_id)
        if before is not None and before.state is LeaseState.RECLAIMED:
            if event.type != "lease.residue_deleted":
                self.complain(f"I3: {event.type} after the end", mpack_id)
            elif event.actor == "reconcile" and mpack_id not in self._returned:
                self.complain("I8: residue, and the blob never came back", mpack_id)
            return
        if event.type == LeaseStuck.type and after.storage_key not in self.ever_locked:
            self._stuck(after, event.recorded_at)
        if before is not None and _RANKS[after.state] < _RANKS[before.state]:
            self.complain(f"I8: went back from {before.state}", mpack_id)
        if isinstance(fact, LeaseActivated | LeaseRenewed):
            self._moved(before, after, event)
        if isinstance(fact, LeaseReclaimed):
            self._ended(after, fact, event.recorded_at)

    def _stuck(self, lease: Lease, moment: datetime) -> None:
        """A store that fails now and then, and answers probes, may look like the blob's fault."""
        if not self.fault_between(lease.delete_at, moment, "flaky store"):
            self.complain("I9: stuck for what was an outage", lease.mpack_id)

    def _moved(self, before: Lease | None, after: Lease, event: StoredEvent) -> None:
        assert before is not None
        name, moment = after.mpack_id, event.recorded_at
        if moment > before.delete_at:
            self.complain(f"I8: {event.type} at {moment}, after {before.delete_at}", name)
        ends, ended = (one.expires_at or one.delete_at for one in (after, before))
        if before.state is LeaseState.ACTIVE and ends < ended:
            self.complain(f"I8: {event.type} shortened {ended}", name)
        row = self.records.rows[name]
        if row.claimed_until is not None and row.claimed_until > moment:
            self.complain(f"I8: {event.type} under the claim of {row.claimed_by}", name)
        if after.expires_at is None:
            return
        longest = after.granted_at + timedelta(seconds=self.policy.lease_life_max_seconds)
        if after.expires_at > longest:
            self.complain("I8: promised for longer than lease_life_max", name)
        if after.delete_at < after.expires_at + timedelta(seconds=self.policy.grace_seconds):
            self.complain("I5: the grace is not kept", name)
        if after.storage_key not in self.blobs.sizes:
            self.complain(f"I5: {event.type} without a blob", name)

    def _ended(self, lease: Lease, fact: LeaseReclaimed, moment: datetime) -> None:
        name = lease.mpack_id
        self.ends += 1
        if fact.outcome is Outcome.FORGOTTEN:
            return
        if fact.reclaimed_at < lease.delete_at:
            self.complain(f"I1: recorded at {fact.reclaimed_at}, before {lease.delete_at}", name)
        if lease.storage_key not in self.blobs.deletions:
            self.complain("I3: recorded as gone, and nobody deleted it", name)
        late = moment - lease.delete_at
        if fact.lateness_ms != (fact.reclaimed_at - lease.delete_at) // _MILLISECOND:
            self.complain(f"I9: told {fact.lateness_ms} ms, at {fact.reclaimed_at}", name)
        if fact.reclaimed_at > moment + _AHEAD_MAX:
            self.complain(f"I9: told of {fact.reclaimed_at} at {moment}", name)
        gone_at = self._gone_at.get(lease.storage_key, lease.delete_at)
        if fact.reclaimed_at < gone_at - _BEHIND_MAX and not self.fault_between(
            lease.delete_at, moment, "slow database"
        ):
            self.complain(f"I9: told of {fact.reclaimed_at}, and it went at {gone_at}", name)
        if not self.fault_between(lease.delete_at, moment):
            if moment - fact.reclaimed_at > LATE_MAX:
                self.complain(f"I9: told of {fact.reclaimed_at} at {moment}", name)
            self.lateness_ms_max_calm = max(self.lateness_ms_max_calm, late // _MILLISECOND)
            if late > LATE_MAX:
                self.complain(f"I9: {late} late, and nothing was wrong", name)

    # At rest. ------------------------------------------------------------------------------------

    def at_rest(self) -> None:
        """Everything was healed, and there was time enough for all that was left."""
        for name, row in self.records.rows.items():
            if row.lease.state is not LeaseState.RECLAIMED:
                self.complain(f"I9: still {row.lease.state}, due {row.due}", name)
            if row.claimed_by is not None:
                self.complain(f"I11: still claimed by {row.claimed_by}", name)
            if row.lease != self._leases.get(name):
                self.complain("I7: the row is not the fold of its events", name)
            stuck = any(one.type == "lease.stuck" for one in self._stream(name))
            if row.attempts >= self.policy.stuck_after_attempts and not stuck:
                self.complain(f"I9: not stuck after {row.attempts} attempts", name)
            ends = sum(one.type == "lease.reclaimed" for one in self._stream(name))
            if ends != (row.lease.state is LeaseState.RECLAIMED):
                self.complain(f"I3: {ends} ends were recorded", name)
        kept = {
            row.lease.storage_key
            for row in self.records.rows.values()
            if row.lease.outcome is Outcome.FORGOTTEN
        }
        for key in self.blobs.sizes:
            if key != OWNER_KEY and key not in kept and key not in self.strangers:
                self.complain(f"I2: {key} is still there", key.rpartition("/")[2])
        for key in sorted(self.strangers - self.blobs.sizes.keys()):
            self.complain(f"I4: {key} was nobody's, and is gone", key)
        for key in sorted(self.blobs.uploads - {OWNER_KEY}):
            self.complain(f"I2: an unfinished upload of {key} is left", key.rpartition("/")[2])
        self._check_chain()

    def _stream(self, mpack_id: str) -> list[StoredEvent]:
        return self.records.streams.get(f"lease/{mpack_id}", [])

    def _check_chain(self) -> None:
        previous = genesis(self.records.log_id)
        for number, event in enumerate(self.records.events, start=1):
            if event.position != number:
                self.complain(f"I7: event {event.position} stands at {number}", event.stream)
            if event.hash != event_hash(previous, event):
                self.complain(f"I7: the chain breaks at {event.position}", event.stream)
            previous = event.hash


_MILLISECOND = timedelta(milliseconds=1)
