"""The gateway's own errors, and how every error becomes an answer.

    leases.errors.Failure
    ├── InvalidRequest            400   fix it
    │   ├── Unauthorized          401   no token, or not a valid one
    │   ├── Forbidden             403   a valid token that may not do this
    │   │   ├── UrlTampered       403   gateway.storage.signing
    │   │   └── UrlExpired        403   gateway.storage.signing
    │   ├── MethodNotAllowed      405
    │   ├── BodyTooSlow           408
    │   ├── NonFastForward        409   the only 409 there is: this client says "diverged" to it
    │   ├── TooLarge              413
    │   ├── UnsupportedMediaType  415
    │   ├── Incomplete            422   bad or missing data, with the list of what is missing
    │   ├── InvalidTtl            422   not a number of seconds that a lease can have
    │   ├── OverQuota             413   leases.errors: more than the quota all by itself
    │   ├── QuotaReached          429   leases.errors: with Retry-After, when enough falls due
    │   └── TooManyRequests       429   with Retry-After
    ├── NotFound                  404   unknown, or private to the caller: the same answer
    │   ├── RepoMissing           404
    │   ├── UnknownCommit         404   a wanted commit is not in the repo
    │   ├── UnknownObject         404   an object is not in the repo
    │   ├── NoSuchName            404   no such branch or release
    │   └── LeaseEnded            410
    ├── Conflict                  503   the retries are used up; trying again may work
    ├── Unavailable               503   with Retry-After
    │   ├── BuildsBusy            503   too many packs are being built
    │   ├── StreamsBusy           503   too many event streams are open
    │   ├── BuildFailed           503   the pack could not be built or stored in time
    │   └── SpoolFull             503   no room to build a pack in
    └── Corrupt                   500   call a human
        └── IncompleteRepo        422   stored history names content that is not stored

Anything else is a bug: 500, and no detail leaves the process.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from leases.errors import (
    Conflict,
    Corrupt,
    Failure,
    InvalidRequest,
    LeaseEnded,
    NotFound,
    OverQuota,
    QuotaReached,
    Unavailable,
)


class Unauthorized(InvalidRequest):
    """This needs a valid token."""

    code = "unauthorized"
    status: ClassVar[int] = 401


class Forbidden(InvalidRequest):
    """This token may not do that."""

    code = "forbidden"
    status: ClassVar[int] = 403


class MethodNotAllowed(InvalidRequest):
    """This address does not take that method."""

    code = "method_not_allowed"
    status: ClassVar[int] = 405


class BodyTooSlow(InvalidRequest):
    """The body did not arrive in time."""

    code = "body_too_slow"
    status: ClassVar[int] = 408


class NonFastForward(InvalidRequest):
    """The branch has moved: its head is not an ancestor of what was pushed."""

    code = "non_fast_forward"
    status: ClassVar[int] = 409


class TooLarge(InvalidRequest):
    """The request is over a limit."""

    code = "too_large"
    status: ClassVar[int] = 413


class UnsupportedMediaType(InvalidRequest):
    """The body must be application/x-msgpack or application/json."""

    code = "unsupported_media_type"
    status: ClassVar[int] = 415


class Incomplete(InvalidRequest):
    """The data is wrong or refers to something that is not there."""

    code = "incomplete"
    status: ClassVar[int] = 422


class InvalidTtl(InvalidRequest):
    """ttl_seconds must be a number of seconds above zero, and no longer than a lease may live."""

    code = "invalid_ttl"
    status: ClassVar[int] = 422


class TooManyRequests(InvalidRequest):
    """Too many requests at once; try again shortly."""

    code = "too_many_requests"
    status: ClassVar[int] = 429


class RepoMissing(NotFound):
    """No such repository."""

    code = "repo_missing"


class UnknownCommit(NotFound):
    """A wanted commit is not in this repository."""

    code = "unknown_commit"


class UnknownObject(NotFound):
    """This repository does not have that object."""

    code = "unknown_object"


class NoSuchName(NotFound):
    """There is no such branch or release."""

    code = "no_such_name"


class BuildsBusy(Unavailable):
    """Too many packs are being built at once; try again shortly."""

    code = "builds_busy"


class StreamsBusy(Unavailable):
    """Too many event streams are open, or the gateway is stopping; try again shortly."""

    code = "streams_busy"


class BuildFailed(Unavailable):
    """The pack could not be built; try again shortly."""

    code = "build_failed"


class SpoolFull(Unavailable):
    """There is no room to build this pack just now; try again shortly."""

    code = "spool_full"


class IncompleteRepo(Corrupt):
    """The history of this repository names content that is not stored; push it again."""

    code = "incomplete_repo"
    status: ClassVar[int] = 422


# By kind, the most specific first; a class of our own says its `status` itself.
_STATUS_BY_KIND: tuple[tuple[type[Failure], int], ...] = (
    (LeaseEnded, 410),
    (OverQuota, 413),
    (QuotaReached, 429),
    (InvalidRequest, 400),
    (NotFound, 404),
    (Conflict, 503),
    (Unavailable, 503),
    (Corrupt, 500),
)
_RETRY_AFTER_SECONDS = 1  # Outages are mostly a restart or a failover; the client decides the rest.
# An answer stays readable, and an error small; the caller learns the rest when it tries again.
MISSING_SHOWN_MAX = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorAnswer:
    """What an error becomes on the wire."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)


def status_of(error: Failure) -> int:
    """The status for this error, by its class alone."""
    own: int | None = getattr(type(error), "status", None)
    if own is not None:
        return own
    return next((status for kind, status in _STATUS_BY_KIND if isinstance(error, kind)), 500)


def answer_for(error: BaseException, *, request_id: str) -> ErrorAnswer:
    """The one shape of every error: a sentence first, for clients that show the body's start.

    Shapes:  {"message", "code", "request_id"} and, where known, "missing": [ids].
    """
    if not isinstance(error, Failure):
        return _shape(
            500, "Something went wrong here; it has been recorded.", "internal", request_id
        )
    status = status_of(error)
    message = _PLAIN.get(status, error.message)
    code = "conflict" if isinstance(error, Conflict) else error.code
    answer = _shape(status, message, code, request_id)
    missing = error.fields.get("missing")
    if missing:
        answer.body["missing"] = sorted(missing)[:MISSING_SHOWN_MAX]
    answer.headers.update(_headers(status, error))
    return answer


# Corruption is for the operator's eyes; the caller learns only that it is not its own fault.
_PLAIN = {500: "Stored data contradicts itself; the operator has been told."}


def _shape(status: int, message: str, code: str, request_id: str) -> ErrorAnswer:
    return ErrorAnswer(
        status=status, body={"message": message, "code": code, "request_id": request_id}
    )


def _headers(status: int, error: Failure) -> dict[str, str]:
    if status == 401:
        return {"WWW-Authenticate": "Bearer"}
    if status in (429, 503):
        seconds = error.fields.get("retry_after_seconds", _RETRY_AFTER_SECONDS)
        return {"Retry-After": str(max(1, round(seconds)))}
    if status == 405 and "allow" in error.fields:
        return {"Allow": str(error.fields["allow"])}
    if status == 416 and "size_bytes" in error.fields:
        return {"Content-Range": f"bytes */{error.fields['size_bytes']}"}
    return {}
