"""Numbers that do not fit together are named, all of them at once."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from leases.policy import _MAY_BE_ZERO, LeasePolicy

DAY = 24 * 3600.0


def changed(change: dict[str, Any]) -> LeasePolicy:
    return replace(LeasePolicy(), **change)


def test_the_defaults_fit_together() -> None:
    assert LeasePolicy().problems() == []


@pytest.mark.parametrize(
    "name", [field.name for field in fields(LeasePolicy) if field.name not in _MAY_BE_ZERO]
)
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_numbers_that_must_be_above_zero(name: str, value: float) -> None:
    assert f"{name} must be above zero" in changed({name: value}).problems()


@pytest.mark.parametrize("name", sorted(_MAY_BE_ZERO - {"alarm_enabled"}))
def test_numbers_that_may_be_zero(name: str) -> None:
    assert changed({name: 0}).problems() == []
    assert changed({name: -1}).problems() == [f"{name} must not be negative"]


@pytest.mark.parametrize(
    "change, named",
    [
        ({"delete_timeout_seconds": 30}, "delete_timeout_seconds"),
        ({"upload_margin_seconds": 600}, "upload_margin_seconds"),
        ({"ttl_default_seconds": DAY + 1}, "ttl_default_seconds"),
        ({"ttl_default_seconds": 8 * DAY, "lease_life_max_seconds": 30 * DAY}, "ttl_default"),
        ({"renew_factor": 0.5}, "renew_factor"),
        ({"retry_factor": 0.5}, "retry_factor"),
        ({"retry_jitter_ratio": 1}, "retry_jitter_ratio"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_pairs_that_cannot_work(change: dict[str, Any], named: str) -> None:
    (problem,) = changed(change).problems()
    assert problem.startswith(named)


def test_the_scheduler_may_be_off() -> None:
    assert LeasePolicy(alarm_enabled=False).problems() == []


@pytest.mark.parametrize(
    "ttl_seconds, guard", [(1, 2), (40, 2), (300, 15), (0, 2)], ids=["1 s", "40 s", "300 s", "0 s"]
)
def test_the_guard_for_sharing_is_two_seconds_or_a_twentieth(
    ttl_seconds: float, guard: float
) -> None:
    assert LeasePolicy().share_guard(ttl_seconds) == guard


@pytest.mark.parametrize("days, longest", [(1, 1), (7, 7), (30, 7)])
def test_no_ttl_is_longer_than_a_signature_may_last(days: int, longest: int) -> None:
    assert LeasePolicy(lease_life_max_seconds=days * DAY).ttl_max_seconds == longest * DAY
