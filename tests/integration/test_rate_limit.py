"""Too many requests: 429 with when to come back, for each token and each address by itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.gateways import LiveGateway, serving, settings_for

# So slow that nothing comes back while a test runs.
PER_SECOND = 0.001


@pytest.fixture
async def limited(database_url: str, tmp_path: Path) -> AsyncIterator[LiveGateway]:
    settings = settings_for(
        database_url,
        tmp_path / "data",
        token_requests_per_second=PER_SECOND,
        address_requests_per_second=PER_SECOND,
        requests_burst_seconds=3000,
    )
    async with serving(settings) as gateway:
        await gateway.repo("o/r")
        yield gateway


async def statuses(gateway: LiveGateway, count: int, *, token: str | None = None) -> list[int]:
    return [(await gateway.call("GET", "/o/r/refs", token=token)).status for _ in range(count)]


async def test_an_address_is_limited_and_told_when_to_come_back(limited: LiveGateway) -> None:
    assert await statuses(limited, 3) == [200] * 3
    answer = await limited.call("GET", "/o/r/refs")
    assert (answer.status, answer.body["code"]) == (429, "too_many_requests")
    assert 900 < int(answer.headers["retry-after"]) <= 1000
    assert "this address may make 0.001 a second" in answer.body["message"]
    text = limited.service.metrics.text().decode()
    assert 'mpack_requests_limited_total{by="address"} 1.0' in text


async def test_a_valid_token_has_a_bucket_of_its_own(limited: LiveGateway) -> None:
    """Its first request counts as its address's; and it is another's no more after that."""
    one, other = await limited.token("read"), await limited.token("read")
    assert await statuses(limited, 1, token=one) == [200]
    assert await statuses(limited, 1, token=other) == [200]
    assert await statuses(limited, 3, token=one) == [200, 200, 429]
    assert await statuses(limited, 3, token=other) == [200, 200, 429]
    assert await statuses(limited, 2) == [200, 429]


async def test_made_up_tokens_count_as_their_address(limited: LiveGateway) -> None:
    made_up = [f"mpk_{number:048x}" for number in range(5)]
    found = [(await statuses(limited, 1, token=token))[0] for token in made_up]
    assert found == [401, 401, 401, 429, 429]


async def test_health_and_operators_are_not_counted(limited: LiveGateway) -> None:
    await statuses(limited, 4)
    admin = await limited.token("admin")
    for path in ("/livez", "/readyz", "/metrics", "/v1/leases"):
        for _ in range(5):
            assert (await limited.call("GET", path, token=admin)).status == 200, path
