"""What can go wrong, in five kinds, by what the caller should do.

    Failure
    ├── InvalidRequest   fix it
    │   ├── QuotaReached     as much as may be is open already; come back when some has ended
    │   └── OverQuota        more than may be open at all
    ├── NotFound         stop
    │   ├── LeaseMissing     no such lease
    │   ├── LeaseEnded       it was reclaimed, or its deadline has passed
    │   └── BlobMissing      the store holds nothing under this key
    ├── Conflict         reload, decide again (never leaves the process)
    │   ├── VersionConflict  somebody else appended first
    │   ├── DeadlinePassed   the guard `not_after` refused, by the database's clock
    │   └── ClaimHeld        a reap worker holds the lease, or holds it no longer
    ├── Unavailable      wait, retry
    │   ├── DatabaseUnavailable
    │   │   └── DatabaseRefused  it answers, and does not let us; its operator can change that
    │   └── StoreUnavailable
    └── Corrupt          call a human
        └── LogCorrupt       a hole, a wrong hash, an unknown form

A failed assertion is a bug and belongs to none of these.
"""

from __future__ import annotations

from typing import Any, ClassVar


class Failure(Exception):
    """Something went wrong."""

    code: ClassVar[str] = "failure"

    def __init__(self, message: str | None = None, /, **fields: Any) -> None:
        self.message = message or (type(self).__doc__ or "").partition("\n")[0]
        self.fields = fields
        super().__init__(self.message)

    def __str__(self) -> str:
        told = ", ".join(f"{name}={value}" for name, value in self.fields.items())
        return f"{self.message} ({told})" if told else self.message


class InvalidRequest(Failure):
    """The request cannot be carried out as it stands."""

    code = "invalid_request"


class QuotaReached(InvalidRequest):
    """As many leases or bytes as may be are open already; come back later."""

    code = "quota_reached"


class OverQuota(InvalidRequest):
    """This alone is more than may be open at a time."""

    code = "over_quota"


class NotFound(Failure):
    """There is nothing by that name."""

    code = "not_found"


class LeaseMissing(NotFound):
    """No such lease."""

    code = "lease_missing"


class LeaseEnded(NotFound):
    """The lease has ended."""

    code = "lease_ended"


class BlobMissing(NotFound):
    """The store holds nothing under this key."""

    code = "blob_missing"


class Conflict(Failure):
    """The state changed in between."""

    code = "conflict"


class VersionConflict(Conflict):
    """Somebody else appended to this stream first."""

    code = "version_conflict"


class DeadlinePassed(Conflict):
    """The deadline of this command passed before it could be recorded."""

    code = "deadline_passed"


class ClaimHeld(Conflict):
    """A claim stands in the way, or the claim that was shown no longer stands."""

    code = "claim_held"


class Unavailable(Failure):
    """A service that is needed does not answer; try again shortly."""

    code = "unavailable"


class DatabaseUnavailable(Unavailable):
    """The database does not answer; try again shortly."""

    code = "database_unavailable"


class DatabaseRefused(DatabaseUnavailable):
    """The database does not allow that; its operator has to mend the login or its rights."""

    code = "database_refused"


class StoreUnavailable(Unavailable):
    """The object store does not answer; try again shortly."""

    code = "store_unavailable"


class Corrupt(Failure):
    """Stored data contradicts itself."""

    code = "corrupt"


class LogCorrupt(Corrupt):
    """The event log contradicts itself."""

    code = "log_corrupt"
