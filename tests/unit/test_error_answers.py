"""Every failure has an answer, and all answers have one shape."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

import pytest

import gateway
import leases
from gateway.client.errors import ClientError
from gateway.errors import (
    Incomplete,
    NonFastForward,
    RepoMissing,
    TooManyRequests,
    Unauthorized,
    answer_for,
    status_of,
)
from leases.errors import (
    BlobMissing,
    Conflict,
    Corrupt,
    DatabaseUnavailable,
    Failure,
    InvalidRequest,
    LeaseEnded,
    NotFound,
    Unavailable,
    VersionConflict,
)

KINDS = (InvalidRequest, NotFound, Conflict, Unavailable, Corrupt)
STATUSES = {
    InvalidRequest: {400, 401, 403, 405, 408, 409, 413, 415, 416, 422, 429},
    NotFound: {404, 410},
    Conflict: {503},
    Unavailable: {503, 507},
    Corrupt: {422, 500},
}


def all_failures() -> list[type[Failure]]:
    """Every failure class there is; each module is imported, so that none hides."""
    for package in (leases, gateway):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            importlib.import_module(module.name)
    # A client's errors are met by callers of the gateway, never answered by it.
    return [kind for kind in _below(Failure) if not issubclass(kind, ClientError)]


def _below(kind: type[Failure]) -> Iterator[type[Failure]]:
    for child in kind.__subclasses__():
        yield child
        yield from _below(child)


def test_every_failure_is_of_one_kind_and_has_its_status() -> None:
    for kind in all_failures():
        (base,) = [base for base in KINDS if issubclass(kind, base)]
        assert status_of(kind()) in STATUSES[base], kind


def test_codes_are_snake_case_and_tell_classes_apart() -> None:
    codes: dict[str, str] = {}
    for kind in all_failures():
        assert kind.code == kind.code.lower().replace("-", "_")
        if "code" not in vars(kind):
            continue  # A closer description of its parent, for callers in this process.
        assert codes.setdefault(kind.code, kind.__name__) == kind.__name__, kind


def test_409_is_for_non_fast_forward_alone() -> None:
    assert [kind for kind in all_failures() if status_of(kind()) == 409] == [NonFastForward]


@pytest.mark.parametrize(
    "error, status, code, headers",
    [
        (InvalidRequest(), 400, "invalid_request", {}),
        (Unauthorized(), 401, "unauthorized", {"WWW-Authenticate": "Bearer"}),
        (RepoMissing(), 404, "repo_missing", {}),
        (BlobMissing(), 404, "blob_missing", {}),
        (LeaseEnded(), 410, "lease_ended", {}),
        (TooManyRequests(retry_after_seconds=2.4), 429, "too_many_requests", {"Retry-After": "2"}),
        (DatabaseUnavailable(), 503, "database_unavailable", {"Retry-After": "1"}),
        (VersionConflict(), 503, "conflict", {"Retry-After": "1"}),
        (Corrupt("secret place"), 500, "corrupt", {}),
        (RuntimeError("secret place"), 500, "internal", {}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_the_table(error: Exception, status: int, code: str, headers: dict[str, str]) -> None:
    answer = answer_for(error, request_id="r1")
    assert (answer.status, answer.body["code"], answer.headers) == (status, code, headers)
    assert list(answer.body) == ["message", "code", "request_id"]
    assert "secret place" not in str(answer.body)


def test_what_is_missing_is_listed_up_to_a_bound() -> None:
    answer = answer_for(Incomplete(missing=[f"{n:064x}" for n in range(5000)]), request_id="r1")
    assert len(answer.body["missing"]) == 1000


def test_an_error_keeps_its_fields_to_itself() -> None:
    answer = answer_for(NotFound("No.", storage_key="transient/x"), request_id="r1")
    assert "transient" not in str(answer.body)
