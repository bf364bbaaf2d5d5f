"""`/metrics` as Prometheus reads it."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from tests.integration.gateways import LiveGateway
from tests.secrecy import check


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One line of a scrape."""

    name: str
    labels: dict[str, str]
    value: float


class Scrape:
    """All lines of one scrape."""

    def __init__(self, text: str) -> None:
        check(text, where="the metrics")
        self.text = text
        self.samples = [
            Sample(name=one.name, labels=one.labels, value=one.value)
            for family in text_string_to_metric_families(text)
            for one in family.samples
        ]

    @property
    def names(self) -> set[str]:
        """Every series' name."""
        return {one.name for one in self.samples}

    def value(self, name: str, **labels: str) -> float:
        """The sum of what has this name and these labels; no such line is an error."""
        found = [
            one.value
            for one in self.samples
            if one.name == name and labels.items() <= one.labels.items()
        ]
        assert found, (name, labels)
        return sum(found)


async def scrape(gateway: LiveGateway, *, anew: bool = True, token: str | None = None) -> Scrape:
    """One scrape; `anew`: not from the cache."""
    if anew:
        gateway.service.stats_cache._asked_at = -float("inf")
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    response = await gateway.http.get(gateway.url + "/metrics", headers=headers)
    assert response.status_code == 200, response.text
    return Scrape(response.text)
