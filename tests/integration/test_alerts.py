"""deploy/prometheus and deploy/grafana: the alerts fire when they should, on metrics that exist."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from leases.clock import SystemClock
from leases.policy import LeasePolicy
from tests.installed import installed
from tests.integration.gateways import LiveGateway, serving, settings_for
from tests.integration.scraping import scrape
from tests.integration.test_metrics import push_and_fetch
from tests.leasing import due, granted, until_reclaimed
from tests.unit.test_tidy import TOP

PROMETHEUS = TOP / "deploy/prometheus"
ALERTS = PROMETHEUS / "alerts.yaml"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]
]
DASHBOARD = json.loads((TOP / "deploy/grafana/mpack-gateway.json").read_text())
SCRAPE_SECONDS = 15
# Not the gateway's: Prometheus makes them itself.
OF_PROMETHEUS = {"up"}
NAME = re.compile(r"\b(?:mpack|process)_[a-z_]+\b|\bup\b")


def promtool(*arguments: str, folder: Path = PROMETHEUS) -> str:
    """Run it; what it says. A run that failed is a failed test."""
    program = installed("promtool", package="prometheus")
    done = subprocess.run(
        [program, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def expressions(dashboard: dict[str, Any]) -> Iterator[str]:
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))


def named(expression: str) -> set[str]:
    """The metrics in an expression; not what stands in label matchers and brackets."""
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|by \([^)]*\)", "", expression)
    return set(NAME.findall(bare)) - OF_PROMETHEUS


def test_the_rules_are_sound() -> None:
    assert "SUCCESS" in promtool("check", "rules", "alerts.yaml")
    promtool("check", "config", "--syntax-only", "prometheus.yml")


def test_the_rules_pass_their_own_tests() -> None:
    assert "SUCCESS" in promtool("test", "rules", "alerts.test.yaml")


def test_every_alert_has_its_test_and_its_page_in_the_runbook() -> None:
    scenarios = (PROMETHEUS / "alerts.test.yaml").read_text()
    runbook = (TOP / "deploy/README.md").read_text()
    told = set(re.findall(r"^### (Mpack\w+)$", runbook, re.MULTILINE))
    assert told == {rule["alert"] for rule in RULES}
    for rule in RULES:
        assert f'alertname="{rule["alert"]}"' in scenarios
        anchor = f"deploy/README.md#{rule['alert'].lower()}"
        assert rule["annotations"]["runbook"] == anchor
        assert rule["labels"]["severity"] in ("page", "ticket")


async def test_every_metric_of_alerts_and_dashboard_is_scraped(live_gateway: LiveGateway) -> None:
    await push_and_fetch(live_gateway)
    engine = live_gateway.service.engine
    await until_reclaimed(engine, await granted(engine))
    names = (await scrape(live_gateway)).names
    wanted = [rule["expr"] for rule in RULES] + list(expressions(DASHBOARD))
    assert len(wanted) > 50
    missing = {expression: named(expression) - names for expression in wanted}
    assert not {expression: names for expression, names in missing.items() if names}


async def test_every_label_that_is_asked_for_is_there(live_gateway: LiveGateway) -> None:
    """A misspelt value would make an alert that never fires."""
    await push_and_fetch(live_gateway)
    seen = await scrape(live_gateway)
    for expression in [rule["expr"] for rule in RULES] + list(expressions(DASHBOARD)):
        for name, matchers in re.findall(r"\b(mpack_[a-z_]+)\{([^}]*)\}", expression):
            for label, sign, value in re.findall(r'(\w+)(=~|=)"([^"]*)"', matchers):
                if value == "5xx":
                    continue  # No request has failed here.
                values = {one.labels[label] for one in seen.samples if one.name == name}
                wanted = set(value.split("|")) if sign == "=~" else {value}
                assert wanted <= values, (name, label)


def test_the_dashboard_is_one_that_grafana_reads() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == "${datasource}"
    for expression in expressions(DASHBOARD):
        assert expression.count("(") == expression.count(")"), expression


@pytest.mark.slow
@pytest.mark.apart
async def test_dead_reap_workers_raise_the_alert_within_a_minute(
    database_url: str, tmp_path: Path
) -> None:
    """Of a real gateway's real scrapes, whenever Prometheus happens to come by."""
    settings = settings_for(database_url, tmp_path / "data", lease=LeasePolicy())
    clock = SystemClock()
    async with serving(settings) as gateway:
        engine = gateway.service.engine
        await engine.owner.check()
        for worker in engine._workers:  # The switch: what a bug would do to them.
            worker.cancel()
        lease = await granted(engine, ttl_seconds=0.5)
        before = await scrape(gateway)
        assert before.value("mpack_leases_unattended") == 0
        await due(engine.database, lease)
        late_since = clock.monotonic()
        scrapes = []
        for second in range(0, 25, 5):
            await clock.sleep(late_since + second - clock.monotonic())
            scrapes.append(await scrape(gateway))
    assert scrapes[0].value("mpack_reap_workers") == 0
    for phase in range(3):  # The first scrape comes 0, 5 or 10 s after the lease fell due.
        series = {
            name: [before.value(name), *(one.value(name) for one in scrapes[phase::3])]
            for name in ("mpack_leases_unattended", "mpack_overdue_seconds")
        }
        fired_at = first_alert(tmp_path / f"phase-{phase}", series)
        # Scrape number 1 is the first one after; rules are evaluated up to 15 s behind a scrape.
        lateness = (fired_at - SCRAPE_SECONDS) + phase * 5 + SCRAPE_SECONDS
        assert lateness <= 60, (phase, series)


def first_alert(folder: Path, series: dict[str, list[float]]) -> int:
    """The second, counted from the first sample, at which MpackLeasesNotReaped fires."""
    folder.mkdir()
    (folder / "alerts.yaml").write_text(ALERTS.read_text())
    inputs = [{"series": 'up{job="mpack-gateway"}', "values": "1x8"}] + [
        {"series": name, "values": " ".join(f"{value:g}" for value in values)}
        for name, values in series.items()
    ]
    fires = 'ALERTS{alertname="MpackLeasesNotReaped", alertstate="firing"}'
    labels = fires.replace("}", ', severity="page"}')
    for at in range(0, 61, SCRAPE_SECONDS):
        test = {
            "interval": f"{SCRAPE_SECONDS}s",
            "input_series": inputs,
            "promql_expr_test": [
                {
                    "expr": fires,
                    "eval_time": f"{at}s",
                    "exp_samples": [{"labels": labels, "value": 1}],
                }
            ],
        }
        told = {
            "rule_files": ["alerts.yaml"],
            "evaluation_interval": f"{SCRAPE_SECONDS}s",
            "tests": [test],
        }
        (folder / "test.yaml").write_text(yaml.safe_dump(told))
        try:
            promtool("test", "rules", "test.yaml", folder=folder)
        except AssertionError:
            continue
        return at
    pytest.fail(f"it did not fire within a minute: {series}")


def test_the_clock_of_that_test_is_what_is_shipped() -> None:
    shipped = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["global"]
    every = f"{SCRAPE_SECONDS}s"
    assert shipped == {"scrape_interval": every, "evaluation_interval": every}
