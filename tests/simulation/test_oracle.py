"""The oracle sees what must not be: a judge that never condemns proves nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest

from leases.codec import SCHEMA_VERSION, dump, encode
from leases.ids import new_event_id, new_mpack_id
from leases.lessor import lease_stream
from leases.model import (
    Event,
    LeaseActivated,
    LeaseKind,
    LeaseReclaimed,
    LeaseRenewed,
    LeaseReserved,
    LeaseResidueDeleted,
    Outcome,
    Trigger,
    storage_key,
)
from leases.policy import LeasePolicy
from tests.simulation.clocks import EPOCH
from tests.simulation.oracle import Oracle
from tests.simulation.records import Records
from tests.simulation.store import Blobs

MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)


@dataclass
class Scene:
    """A lease with a blob, due in a minute, and an oracle that watches; `calm` says no fault."""

    now: datetime = EPOCH
    calm: bool = True
    mpack_id: str = field(default_factory=new_mpack_id)
    blobs: Blobs = field(default_factory=Blobs)

    def __post_init__(self) -> None:
        self.records = Records(lambda: self.now, new_event_id())
        self.oracle = Oracle(
            self.records, self.blobs, LeasePolicy(), lambda *_, **__: not self.calm
        )
        self.records.appended = self.oracle.appended
        self.blobs.before_delete = self.oracle.before_delete
        self.blobs.stored = self.oracle.stored
        self.version = 0
        self.key = storage_key("log", self.mpack_id)
        self.due_at = self.now + MINUTE
        self.append(
            LeaseReserved(
                kind=LeaseKind.PACK,
                repo_id="repo-1",
                storage_key=self.key,
                granted_at=self.now,
                delete_at=self.due_at,
            )
        )
        self.blobs.put(self.key, b"pack")
        self.append(
            LeaseActivated(
                sha256="ab",
                size_bytes=4,
                activated_at=self.now,
                expires_at=self.due_at,
                delete_at=self.due_at,
                ttl_seconds=60,
            )
        )

    def append(self, event: Event, *, actor: str = "test") -> None:
        row: tuple[Any, ...] = (0, lease_stream(self.mpack_id), self.version, new_event_id())
        row += (event.type, SCHEMA_VERSION, dump(encode(event)), actor, None, None, None)
        assert self.records.append([[one] for one in row])["verdicts"] == ["ok"]
        self.version += 1

    def reclaim(self, *, late: timedelta = timedelta(), told_ms: int | None = None) -> None:
        self.now = self.due_at + late
        self.append(
            LeaseReclaimed(
                outcome=Outcome.DELETED,
                trigger=Trigger.ALARM,
                reclaimed_at=self.now,
                lateness_ms=late // timedelta(milliseconds=1) if told_ms is None else told_ms,
            )
        )

    @property
    def found(self) -> str:
        self.oracle.at_rest()
        return "\n".join(one.what for one in self.oracle.violations)


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_a_punctual_end_is_right(scene: Scene) -> None:
    scene.now = scene.due_at
    scene.blobs.delete(scene.key)
    scene.reclaim(late=SECOND / 10)
    assert scene.found == ""


def test_a_deletion_before_its_time(scene: Scene) -> None:
    scene.now = scene.due_at - SECOND / 1000
    scene.blobs.delete(scene.key)
    scene.reclaim()
    assert scene.found.startswith("I1: deleted")


def test_a_record_without_a_deletion(scene: Scene) -> None:
    scene.reclaim()
    assert "nobody deleted it" in scene.found
    assert "I2" in scene.found


@pytest.mark.parametrize("calm", [True, False])
def test_a_late_end_needs_a_fault(scene: Scene, calm: bool) -> None:
    scene.calm = calm
    scene.now = scene.due_at
    scene.blobs.delete(scene.key)
    scene.reclaim(late=2 * SECOND)
    assert ("nothing was wrong" in scene.found) is calm


def test_a_lateness_that_is_not_true(scene: Scene) -> None:
    scene.now = scene.due_at
    scene.blobs.delete(scene.key)
    scene.reclaim(late=SECOND / 2, told_ms=0)
    assert "told 0 ms" in scene.found


def test_an_end_that_is_told_before_the_blob_went(scene: Scene) -> None:
    scene.now = scene.due_at + SECOND / 2
    scene.blobs.delete(scene.key)
    scene.reclaim()
    assert "and it went at" in scene.found


def test_a_forgotten_blob_that_is_deleted(scene: Scene) -> None:
    scene.now = scene.due_at
    scene.append(
        LeaseReclaimed(
            outcome=Outcome.FORGOTTEN,
            trigger=Trigger.COMMAND,
            reclaimed_at=scene.now,
            lateness_ms=0,
            reason="test",
        )
    )
    assert scene.found == ""
    scene.blobs.delete(scene.key)
    assert "a forgotten blob is deleted" in scene.found


def test_a_renewal_that_shortens_or_comes_too_late(scene: Scene) -> None:
    scene.append(LeaseRenewed(expires_at=scene.now, delete_at=scene.now))
    scene.now += SECOND
    scene.append(LeaseRenewed(expires_at=scene.due_at, delete_at=scene.due_at))
    assert "shortened" in scene.found
    assert "I8: lease.renewed at" in scene.found


def test_a_second_end(scene: Scene) -> None:
    scene.now = scene.due_at
    scene.blobs.delete(scene.key)
    scene.reclaim()
    scene.reclaim()
    assert "I3: lease.reclaimed after the end" in scene.found


def test_an_open_lease_and_its_blob_at_rest(scene: Scene) -> None:
    assert "I9: still active" in scene.found
    assert "I2" in scene.found


@pytest.mark.parametrize("came_back", [True, False])
def test_residue_must_have_come_back(scene: Scene, came_back: bool) -> None:
    scene.now = scene.due_at
    scene.blobs.delete(scene.key)
    scene.reclaim()
    if came_back:
        scene.blobs.put(scene.key, b"pack")
        scene.blobs.delete(scene.key)
    scene.append(LeaseResidueDeleted(found_bytes=4), actor="reconcile")
    assert (scene.found == "") is came_back


def test_a_chain_that_does_not_hold(scene: Scene) -> None:
    scene.records.events[0], scene.records.events[1] = scene.records.events[1::-1]
    assert "the chain breaks" in scene.found
