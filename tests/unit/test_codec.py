"""Events are stored as one text each, and stored texts stay readable for ever."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import get_args

import pytest

from leases.codec import SCHEMA_VERSION, decode, dump, encode, instant
from leases.errors import LogCorrupt
from leases.model import (
    Event,
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
    LeaseStuck,
    Outcome,
    Trigger,
)

T0 = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
T1 = datetime(2026, 1, 2, 3, 4, 6, tzinfo=UTC)
T0_TEXT, T1_TEXT = "2026-01-02T03:04:05.000678Z", "2026-01-02T03:04:06.000000Z"

# As they stand in logs out there: never edit one, only add the next form beside it.
STORED: dict[str, tuple[Event, str]] = {
    "lease.reserved": (
        LeaseReserved(
            kind=LeaseKind.UPLOAD,
            repo_id="r",
            storage_key="transient/l/m",
            granted_at=T0,
            delete_at=T1,
            object_id="o",
            cache_key="c",
        ),
        (
            f'{{"cache_key":"c","delete_at":"{T1_TEXT}","granted_at":"{T0_TEXT}","kind":"upload",'
            '"object_id":"o","repo_id":"r","storage_key":"transient/l/m"}'
        ),
    ),
    "lease.activated": (
        LeaseActivated(
            sha256="aa",
            size_bytes=7,
            activated_at=T0,
            expires_at=T1,
            delete_at=T1,
            ttl_seconds=0.5,
        ),
        (
            f'{{"activated_at":"{T0_TEXT}","delete_at":"{T1_TEXT}","expires_at":"{T1_TEXT}",'
            '"sha256":"aa","size_bytes":7,"ttl_seconds":0.5}'
        ),
    ),
    "lease.renewed": (
        LeaseRenewed(delete_at=T1, expires_at=T1),
        f'{{"delete_at":"{T1_TEXT}","expires_at":"{T1_TEXT}"}}',
    ),
    "lease.revoked": (
        LeaseRevoked(revoked_at=T0, expires_at=T0, delete_at=T0, reason="größer"),
        (
            f'{{"delete_at":"{T0_TEXT}","expires_at":"{T0_TEXT}","reason":"größer",'
            f'"revoked_at":"{T0_TEXT}"}}'
        ),
    ),
    "lease.cleanup_failed": (LeaseCleanupFailed(error="it broke"), '{"error":"it broke"}'),
    "lease.stuck": (
        LeaseStuck(error="it broke", attempts=8),
        '{"attempts":8,"error":"it broke"}',
    ),
    "lease.reclaimed": (
        LeaseReclaimed(
            outcome=Outcome.ALREADY_GONE,
            trigger=Trigger.START_UP,
            reclaimed_at=T0,
            lateness_ms=12,
            reason="asked for",
        ),
        (
            f'{{"lateness_ms":12,"outcome":"already_gone","reason":"asked for",'
            f'"reclaimed_at":"{T0_TEXT}","trigger":"start_up"}}'
        ),
    ),
    "lease.adopted": (
        LeaseAdopted(
            kind=LeaseKind.PACK,
            repo_id="",
            storage_key="transient/l/m",
            granted_at=T0,
            delete_at=T1,
        ),
        (
            f'{{"delete_at":"{T1_TEXT}","granted_at":"{T0_TEXT}","kind":"pack","repo_id":"",'
            '"storage_key":"transient/l/m"}'
        ),
    ),
    "lease.retried": (LeaseRetried(attempts=9), '{"attempts":9}'),
    "lease.residue_deleted": (LeaseResidueDeleted(found_bytes=7), '{"found_bytes":7}'),
}


@pytest.mark.parametrize("type_", STORED)
def test_the_stored_form_of_every_event(type_: str) -> None:
    event, text = STORED[type_]
    assert event.type == type_
    assert dump(encode(event)) == text
    assert decode(type_, 1, text) == event


def test_a_reservation_may_say_what_is_planned() -> None:
    event, text = STORED["lease.reserved"]
    assert isinstance(event, LeaseReserved)
    text = text.replace('"repo_id":"r",', '"repo_id":"r","size_bytes":9,')
    assert dump(encode(replace(event, size_bytes=9))) == text
    assert decode("lease.reserved", 1, text) == replace(event, size_bytes=9)


def test_every_event_has_a_stored_form_here() -> None:
    assert {kind.type for kind in get_args(Event)} == STORED.keys()
    assert SCHEMA_VERSION == 1


def test_absent_values_are_left_out_and_read_as_none() -> None:
    event = LeaseRenewed(delete_at=T0)
    assert dump(encode(event)) == f'{{"delete_at":"{T0_TEXT}"}}'
    assert decode("lease.renewed", 1, dump(encode(event))) == event


def test_what_stands_beside_the_fields_is_skipped() -> None:
    """The shell notes the replica in every event."""
    text = '{"error":"it broke","replica":"00c0ffee"}'
    assert decode("lease.cleanup_failed", 1, text) == LeaseCleanupFailed(error="it broke")


@pytest.mark.parametrize(
    "type_, schema_version, data",
    [
        ("lease.invented", 1, "{}"),
        ("lease.cleanup_failed", 2, '{"error":"it broke"}'),
        ("lease.cleanup_failed", 1, "{}"),
        ("lease.cleanup_failed", 1, "no json"),
        ("lease.cleanup_failed", 1, "[]"),
        ("lease.renewed", 1, '{"delete_at":"yesterday"}'),
        ("lease.renewed", 1, '{"delete_at":7}'),
        ("lease.reclaimed", 1, STORED["lease.reclaimed"][1].replace("already_gone", "eaten")),
    ],
    ids=[
        "unknown type",
        "unknown form",
        "missing field",
        "no JSON",
        "no map",
        "no time",
        "a number for a time",
        "unknown outcome",
    ],
)
def test_what_cannot_be_read_is_corruption(type_: str, schema_version: int, data: str) -> None:
    with pytest.raises(LogCorrupt):
        decode(type_, schema_version, data)


def test_a_text_has_one_form() -> None:
    assert dump({"b": 1, "a": [None, "ü"]}) == '{"a":[null,"ü"],"b":1}'


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_json_does_not_have_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        dump({"seconds": value})


def test_times_are_written_in_utc() -> None:
    elsewhere = T0.astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert instant(elsewhere) == T0_TEXT


def test_texts_of_times_sort_as_the_times_do() -> None:
    times = [T0 + timedelta(microseconds=step) for step in (0, 1, 999_322, 10**9)]
    assert sorted(map(instant, times)) == [instant(moment) for moment in times]


def test_stored_texts_are_json() -> None:
    assert all(json.loads(text) for _event, text in STORED.values())
