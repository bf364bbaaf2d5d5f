"""The layers of tests, from quick to slow, each narrowed to what watches a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.planted.bugs import (
    ALARM,
    APPEND,
    BULK,
    CLAIMS,
    DECIDE,
    DELETIONS,
    DEPOSIT,
    OWNER,
    QUOTAS,
    REAPER,
    RECONCILE,
    ROOM,
    SETTLEMENT,
    SHARING,
    STREAM,
    TIMER,
    Bug,
)

_UNIT = (
    *("test_decide", "test_chain", "test_codec", "test_circuit", "test_batch_size"),
    *("test_lease_policy", "test_url_seconds", "test_s3_signing", "test_deletions"),
)
_REAPS = ("test_reaper", "test_settlement", "test_s3_leases")
_SHARES = ("test_fetch_sharing", "test_fetch_routes")
# What of the gateway the quick layers look at.
_PURE = ("gateway/packs/url_life.py", "gateway/storage/s3_deletions.py")
# What in tests/integration meets the code of a file, the nearest first.
_MEETS: Mapping[str, Sequence[str]] = {
    APPEND: ("test_log", "test_lessor", "test_reaper"),
    "leases/log.py": ("test_log", "test_lessor"),
    "leases/audit.py": ("test_audit",),
    DECIDE: ("test_lessor", "test_reaper", "test_reconcile"),
    CLAIMS: (*_REAPS, "test_instance"),
    REAPER: _REAPS,
    SETTLEMENT: _REAPS,
    DELETIONS: _REAPS,
    BULK: ("test_s3_store", "test_s3_leases"),
    ALARM: ("test_alarm", "test_instance"),
    TIMER: ("test_alarm",),
    "leases/engine.py": ("test_engine", "test_alarm", "test_owner"),
    OWNER: ("test_owner", "test_pause"),
    RECONCILE: ("test_reconcile",),
    QUOTAS: ("test_quotas",),
    ROOM: ("test_quotas",),
    DEPOSIT: (*_SHARES, "test_fetch_streaming", "test_quotas"),
    STREAM: ("test_fetch_streaming",),
    "gateway/packs/slot_keeper.py": _SHARES,
    "gateway/packs/slots.py": _SHARES,
    SHARING: (*_SHARES, "test_quotas"),
    "gateway/packs/url_life.py": ("test_storage_conformance", *_SHARES),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One kind of test; `command` follows `python -m` in the copy of the tree."""

    name: str
    command: Sequence[str]
    seconds_max: float


# Enough storms of each kind: some minutes, on a busy machine a quarter of an hour. The limit is far
# beyond that, because what is cut at it counts as found.
_SIMULATION = Layer(
    name="simulation",
    command=("tests.simulation", "--stop", *("--seed", "1", "--runs", "24", "--seconds", "600")),
    seconds_max=3600,
)
# What the simulation does not run: SQL, the real timer, audits of whole logs, quotas.
_NOT_SIMULATED = (APPEND, CLAIMS, TIMER, "leases/audit.py", QUOTAS, ROOM)


def layers_for(bug: Bug) -> list[Layer]:
    """What is run to find this bug, in order."""
    met = [f"tests/integration/{name}.py" for name in _MEETS[bug.path]]
    layers = []
    if bug.path.startswith("leases/") or bug.path in _PURE:
        layers = [
            _tests("unit", [f"tests/unit/{name}.py" for name in _UNIT], seconds_max=120),
            _tests(
                "property",
                [f"tests/property/test_{name}.py" for name in ("lease_laws", "fold", "quota_room")],
                seconds_max=300,
            ),
        ]
    layers += [
        _tests("integration", met, seconds_max=600),
        _tests("stateful", ["tests/property/test_engine_machine.py"], seconds_max=300),
        *([_SIMULATION] if _is_simulated(bug) else []),
        _tests(
            "crash points",
            ["tests/fault/test_crash_enumerator.py", "tests/fault/test_database_faults.py"],
            seconds_max=600,
        ),
        _tests(
            "fault",
            [f"tests/fault/test_{name}.py" for name in ("clocks", "outages", "two_processes")]
            + ["tests/fault/test_crash_points.py"],
            seconds_max=900,
        ),
    ]
    return layers


def _is_simulated(bug: Bug) -> bool:
    return bug.path.startswith("leases/") and bug.path not in _NOT_SIMULATED


def _tests(name: str, paths: Sequence[str], *, seconds_max: float) -> Layer:
    options = ("-q", "-x", "--no-header", "-p", "no:cacheprovider", "-p", "no:randomly")
    return Layer(name=name, command=("pytest", *options, *paths), seconds_max=seconds_max)
