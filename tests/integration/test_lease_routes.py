"""What operators see of leases and events."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from gateway.lease_listing import LeaseFilter
from leases.ids import new_mpack_id
from leases.lessor import Caller
from leases.model import LeaseKind
from tests.integration.gateways import LiveGateway

CALLER = Caller(actor="test", request_id="r1")
HASH = "0" * 64


async def grant(gateway: LiveGateway, repo_id: str = "r", ttl_seconds: float = 300) -> str:
    """An active lease without a blob; that it has none is the reconciler's finding, not ours."""
    lessor, mpack_id = gateway.service.engine.lessor, new_mpack_id()
    await lessor.reserve(mpack_id=mpack_id, kind=LeaseKind.PACK, repo_id=repo_id, caller=CALLER)
    await lessor.activate(
        mpack_id, sha256=HASH, size_bytes=1, ttl_seconds=ttl_seconds, caller=CALLER
    )
    return mpack_id


class Operator:
    def __init__(self, gateway: LiveGateway, token: str) -> None:
        self.gateway, self._token = gateway, token

    async def get(self, path: str, status: int = 200) -> dict[str, Any]:
        answer = await self.gateway.call("GET", path, token=self._token, headers={"Accept": "*/*"})
        assert answer.status == status, answer.body
        assert answer.headers["content-type"] == "application/json"
        return answer.body

    async def ids(self, query: str) -> list[str]:
        return [lease["mpack_id"] for lease in (await self.get("/v1/leases?" + query))["leases"]]


@pytest.fixture
async def operator(live_gateway: LiveGateway) -> Operator:
    return Operator(live_gateway, await live_gateway.token("admin"))


async def test_pages_by_key_show_every_lease_once(operator: Operator) -> None:
    granted = sorted([await grant(operator.gateway) for _ in range(7)], reverse=True)
    seen: list[str] = []
    cursor, pages = "", 0
    while True:
        page = await operator.get(f"/v1/leases?limit=3{cursor}")
        seen += [lease["mpack_id"] for lease in page["leases"]]
        pages += 1
        await grant(operator.gateway)  # New ones sort before the pages already seen.
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
    assert (seen, pages) == (granted, 3)


async def test_filters_narrow(operator: Operator) -> None:
    repo_id = await operator.gateway.repo("o/r")
    mine = await grant(operator.gateway, repo_id)
    other = await grant(operator.gateway)
    assert await operator.ids("repo=o/r") == [mine]
    assert await operator.ids(f"repo_id={repo_id}") == [mine]
    assert await operator.ids(f"prefix={other[:30]}") in ([other], [other, mine])
    assert await operator.ids("state=active") == [other, mine]
    for state in ("reserved", "reclaimed", "stuck", "due"):
        assert await operator.ids(f"state={state}") == []
    lease = await operator.get(f"/v1/leases/{mine}")
    at = lease["granted_at"]
    assert mine in await operator.ids(f"from={at}")
    assert await operator.ids(f"to={at}") == []
    assert await operator.ids("from=2020-01-01T00:00:00%2B00:00&to=2020-01-02T00:00:00Z") == []


async def test_a_lease_comes_with_its_events(operator: Operator) -> None:
    mpack_id = await grant(operator.gateway)
    lease = await operator.get(f"/v1/leases/{mpack_id}")
    assert lease["state"] == "active"
    assert [event["type"] for event in lease["events"]] == ["lease.reserved", "lease.activated"]
    assert lease["events"][0]["actor"] == "test"
    assert "claim_token" not in lease


async def test_a_unique_beginning_is_enough(operator: Operator) -> None:
    mpack_id = await grant(operator.gateway)
    assert (await operator.get(f"/v1/leases/{mpack_id[:20]}"))["mpack_id"] == mpack_id
    await grant(operator.gateway)
    answer = await operator.get(f"/v1/leases/{mpack_id[:2]}", status=400)
    assert "more than one id" in answer["message"]
    assert (await operator.get("/v1/leases/ffff", status=404))["code"] == "lease_missing"
    assert await operator.get("/v1/leases/xyz", status=400)


async def test_events_are_filtered_and_paged(operator: Operator) -> None:
    first = await grant(operator.gateway)
    await grant(operator.gateway)
    page = await operator.get("/v1/events?limit=3")
    assert [event["position"] for event in page["events"]] == [1, 2, 3]
    rest = await operator.get(f"/v1/events?after={page['next']}")
    assert [event["position"] for event in rest["events"]] == [4]
    assert rest["next"] is None
    stream = await operator.get(f"/v1/events?stream=lease/{first}")
    assert [event["version"] for event in stream["events"]] == [1, 2]
    activated = await operator.get("/v1/events?type=lease.activated")
    assert [event["position"] for event in activated["events"]] == [2, 4]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/leases?limit=0",
        "/v1/leases?limit=1001",
        "/v1/leases?limit=-1",
        "/v1/leases?limit=1e2",
        "/v1/leases?limit=%D9%A3",
        "/v1/leases?state=dead",
        "/v1/leases?cursor=../x",
        "/v1/leases?cursor=",
        "/v1/leases?prefix=%00",
        "/v1/leases?from=yesterday",
        "/v1/leases?from=2026-01-01",
        "/v1/leases?stat=active",
        "/v1/leases?limit=1&limit=2",
        "/v1/events?after=-1",
        "/v1/events?after=99999999999999999999",
        "/v1/events?stream=" + "x" * 301,
    ],
)
async def test_a_bad_query_is_400_with_a_sentence(operator: Operator, path: str) -> None:
    answer = await operator.get(path, status=400)
    assert len(answer["message"]) > 10


async def test_an_unknown_repo_is_404(operator: Operator) -> None:
    for name in ("o/absent", "nothing"):
        await operator.get(f"/v1/leases?repo={name}", status=404)


async def test_due_leases_are_found(operator: Operator) -> None:
    """By the listing itself; the reaper is paused, or it would be faster."""
    service = operator.gateway.service
    service.engine.owner.may_reap = lambda: False  # type: ignore[method-assign]  # holds the reaper back
    mpack_id = await grant(operator.gateway, ttl_seconds=1)
    await service.engine.lessor.revoke(mpack_id, reason="test", caller=CALLER)
    page = await service.listing.leases(LeaseFilter(state="due"))
    assert [lease["mpack_id"] for lease in page.rows] == [mpack_id]
    assert page.rows[0]["delete_at"] - page.rows[0]["revoked_at"] == timedelta(0)
