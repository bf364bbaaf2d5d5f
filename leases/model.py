"""A lease, the commands that may be asked of it, and the facts that can become of them.

All times are aware UTC instants by the database's clock. An event's field that bears a column's
name sets that column of `mpack_leases`; the projection is nothing but that.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import ClassVar

PREFIX = "transient/"


def storage_key(log_id: str, mpack_id: str) -> str:
    """Where a lease's blob lies: always below the transient prefix, in this log's own folder."""
    return f"{PREFIX}{log_id}/{mpack_id}"


class LeaseState(StrEnum):
    """`reserved → active → reclaimed`, never back."""

    RESERVED = "reserved"
    ACTIVE = "active"
    RECLAIMED = "reclaimed"


class LeaseKind(StrEnum):
    """What the blob is: a pack for a fetch, or an upload that a push may claim."""

    PACK = "pack"
    UPLOAD = "upload"


class Outcome(StrEnum):
    """How a lease's blob went."""

    DELETED = "deleted"
    ALREADY_GONE = "already_gone"
    FORGOTTEN = "forgotten"


class Trigger(StrEnum):
    """What made a worker look."""

    ALARM = "alarm"
    START_UP = "start_up"
    PERIODIC = "periodic"
    COMMAND = "command"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The state of one lease: the fold of its events, and a row of `mpack_leases`.

    `size_bytes` is the blob's from the activation on; before that what was planned, or None.
    """

    mpack_id: str
    kind: LeaseKind
    repo_id: str
    object_id: str | None = None
    storage_key: str
    cache_key: str | None = None
    state: LeaseState
    sha256: str | None = None
    size_bytes: int | None = None
    granted_at: datetime
    activated_at: datetime | None = None
    expires_at: datetime | None = None
    delete_at: datetime
    revoked_at: datetime | None = None
    stuck: bool = False
    reclaimed_at: datetime | None = None
    outcome: Outcome | None = None
    lateness_ms: int | None = None
    version: int


# Commands: wishes, in the imperative. -------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ReserveLease:
    """Stand a row before the blob; the blob must be there before `upload_limit_seconds` pass."""

    kind: LeaseKind
    repo_id: str
    storage_key: str
    upload_limit_seconds: float
    object_id: str | None = None
    cache_key: str | None = None
    size_bytes: int | None = None  # What is planned, where that is known.


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtendReservation:
    """Move a reservation's deadline on, while its builder still works."""

    upload_limit_seconds: float
    lease_life_max_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivateLease:
    """The blob is complete: the promise begins."""

    sha256: str
    size_bytes: int
    ttl_seconds: float
    grace_seconds: float
    lease_life_max_seconds: float
    signing_ends_at: datetime | None = None  # No URL lives longer, so the lease need not.


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewLease:
    """Let the promise last until at least `ttl_seconds` from now; never shortens it."""

    ttl_seconds: float
    guard_seconds: float
    grace_seconds: float
    lease_life_max_seconds: float
    signing_ends_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokeLease:
    """End the promise now."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordReclaim:
    """The blob is gone; say so, once."""

    outcome: Outcome
    trigger: Trigger


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetLease:
    """Give up a blob that cannot be deleted: an operator answers for it, and for the reason."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryLease:
    """Delete again now, after `attempts` failures, as if none had failed; for an operator."""

    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFailure:
    """A deletion failed for a reason that is the lease's own, for the `attempts`-th time.

    `noted_before` says that the log holds a `lease.cleanup_failed` of this lease already.
    """

    error: str
    attempts: int
    noted_before: bool
    stuck_after_attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptLease:
    """A blob without a row was found under this log's folder: give it one."""

    repo_id: str
    storage_key: str
    made_at: datetime
    lease_life_max_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordResidue:
    """A blob came back after its lease had ended, and was deleted again."""

    size_bytes: int


Command = (
    ReserveLease
    | ExtendReservation
    | ActivateLease
    | RenewLease
    | RevokeLease
    | RecordReclaim
    | ForgetLease
    | RetryLease
    | RecordFailure
    | AdoptLease
    | RecordResidue
)


# Events: facts, in the past tense. ---------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseReserved:
    """A row stands; a blob of about `size_bytes` may follow until `delete_at`."""

    type: ClassVar[str] = "lease.reserved"
    kind: LeaseKind
    repo_id: str
    storage_key: str
    granted_at: datetime
    delete_at: datetime
    object_id: str | None = None
    cache_key: str | None = None
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseActivated:
    """The blob is complete and its URL may be handed out until `expires_at`."""

    type: ClassVar[str] = "lease.activated"
    sha256: str
    size_bytes: int
    activated_at: datetime
    expires_at: datetime
    delete_at: datetime
    ttl_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRenewed:
    """The deadline moved on; a reservation has no `expires_at` to move."""

    type: ClassVar[str] = "lease.renewed"
    delete_at: datetime
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRevoked:
    """The promise was ended before its time."""

    type: ClassVar[str] = "lease.revoked"
    revoked_at: datetime
    expires_at: datetime
    delete_at: datetime
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseCleanupFailed:
    """The first deletion failed; later failures are counted in the row alone."""

    type: ClassVar[str] = "lease.cleanup_failed"
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseStuck:
    """So many deletions failed that a human should look; it is still tried every hour."""

    type: ClassVar[str] = "lease.stuck"
    error: str
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRetried:
    """An operator wants the failed deletion tried again; the state stays as it is."""

    type: ClassVar[str] = "lease.retried"
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseReclaimed:
    """The blob is gone, or forgotten. There is exactly one of these for every lease."""

    type: ClassVar[str] = "lease.reclaimed"
    outcome: Outcome
    trigger: Trigger
    reclaimed_at: datetime
    lateness_ms: int
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseAdopted:
    """A blob without a row was given one, to be deleted when no promise can hold any more."""

    type: ClassVar[str] = "lease.adopted"
    kind: LeaseKind
    repo_id: str
    storage_key: str
    granted_at: datetime
    delete_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseResidueDeleted:
    """A blob that came back after the end was deleted again; the state stays as it is."""

    type: ClassVar[str] = "lease.residue_deleted"
    found_bytes: int


Event = (
    LeaseReserved
    | LeaseActivated
    | LeaseRenewed
    | LeaseRevoked
    | LeaseCleanupFailed
    | LeaseStuck
    | LeaseRetried
    | LeaseReclaimed
    | LeaseAdopted
    | LeaseResidueDeleted
)
