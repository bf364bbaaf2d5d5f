"""What operators' machines see: counts of what was done, gauges of how things stand."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import create_async_engine
from starlette.datastructures import Secret

from gateway.metrics import TEXT_FORMAT
from leases.database import Database
from leases.model import Trigger
from leases.owner import OWNER_KEY, Mark
from leases.policy import LeasePolicy
from leases.stats import read_stats
from tests.factories import History
from tests.fakes import ShiftedClock
from tests.integration.gateways import LiveGateway, serving, settings_for
from tests.integration.scraping import Scrape, scrape
from tests.leasing import granted, until_reclaimed


async def push_and_fetch(gateway: LiveGateway, *, times: int = 2) -> History:
    history = History()
    history.commit({"a.txt": history.content(b"a" * 5000)})
    token = await gateway.token("push")
    head = (await gateway.push("o/r", history, token=token)).body["branch_heads"]["main"]
    for _ in range(times):
        await gateway.call("POST", "/o/r/fetch/mpack", {"want": [head], "ttl_seconds": 60})
    return history


async def test_a_pack_leaves_its_traces(live_gateway: LiveGateway) -> None:
    await push_and_fetch(live_gateway)
    seen = await scrape(live_gateway)
    assert seen.value("mpack_leases", state="active") == 1
    assert seen.value("mpack_leases_issued_total") == 1
    assert seen.value("mpack_events_appended_total", type="lease.reserved") == 1
    assert seen.value("mpack_slot_requests_total", result="miss") == 1
    assert seen.value("mpack_slot_requests_total", result="hit") == 1
    assert seen.value("mpack_build_seconds_count") == 1
    assert seen.value("mpack_built_bytes_total") == seen.value("mpack_bytes_held") > 5000
    assert seen.value("mpack_served_bytes_total") == 2 * seen.value("mpack_built_bytes_total")
    assert seen.value("mpack_store_seconds_count", call="put") >= 2
    assert seen.value("mpack_database_seconds_count") > 5
    asked = {"method": "POST", "route": "/{owner}/{repo}/fetch/mpack", "status": "2xx"}
    assert seen.value("mpack_request_seconds_count", **asked) == 2
    assert seen.value("mpack_answer_bytes_total", route=asked["route"]) > 100
    assert seen.value("mpack_log_position") == seen.value("mpack_events_appended_total")


async def test_a_pack_that_is_not_kept_is_built_and_served(live_gateway: LiveGateway) -> None:
    history = await push_and_fetch(live_gateway, times=0)
    answer = await live_gateway.call("POST", "/o/r/fetch", {"want": [history.head.commit_id]})
    assert answer.status == 200
    seen = await scrape(live_gateway)
    assert seen.value("mpack_slot_requests_total", result="passed") == 1
    assert seen.value("mpack_build_seconds_count") == 1
    assert seen.value("mpack_served_bytes_total") == seen.value("mpack_built_bytes_total") > 5000
    assert seen.value("mpack_leases_issued_total") == 0


async def test_the_end_of_a_lease_is_counted_with_its_lateness(live_gateway: LiveGateway) -> None:
    engine = live_gateway.service.engine
    await until_reclaimed(engine, await granted(engine, ttl_seconds=0.05))
    seen = await scrape(live_gateway)
    assert seen.value("mpack_deletions_total", outcome="deleted") == 1
    assert seen.value("mpack_lateness_seconds_count") == 1
    assert seen.value("mpack_lateness_seconds_bucket", le="10.0") == 1
    assert seen.value("mpack_overdue_seconds") == 0
    assert seen.value("mpack_deletions_total", outcome="failed") == 0


async def test_states_that_somebody_is_paged_for_are_there(live_gateway: LiveGateway) -> None:
    service = live_gateway.service
    await service.engine.owner.check()
    seen = await scrape(live_gateway)
    assert seen.value("mpack_circuit_open") == seen.value("mpack_reaping_paused") == 0
    assert seen.value("mpack_reap_workers") == 4
    assert seen.value("mpack_instance_live") == seen.value("mpack_replicas") == 1
    service.engine.reaper.circuit.opened()
    foreign = Mark(log_id="somebody else's", position=1, hash="00")
    await service.store.put(OWNER_KEY, foreign.dump())
    await service.engine.owner.check()
    clock = service.engine.database_clock
    clock._clock = ShiftedClock()
    clock.skew_seconds = -3
    seen = await scrape(live_gateway)
    assert seen.value("mpack_circuit_open") == seen.value("mpack_reaping_paused") == 1
    assert abs(seen.value("mpack_clock_skew_seconds")) < 3.1


async def test_what_runs_by_itself_is_counted(database_url: str, tmp_path: Path) -> None:
    policy = LeasePolicy(sweep_interval_seconds=0.05, reconcile_interval_seconds=0.05)
    settings = settings_for(database_url, tmp_path / "data", lease=policy)
    async with serving(settings) as gateway:
        store, engine = gateway.service.store, gateway.service.engine
        await engine.owner.check()  # The store is marked first: who finds it used is paused.
        await store.put("transient/a-key-of-nobody", b"x")
        seen = await scrape(gateway)
        while not seen.value("mpack_reconcile_findings"):
            seen = await scrape(gateway)
        for task in ("periodic_sweep", "reconcile", "log_check"):
            while not seen.value("mpack_tasks_total", task=task, result="ok"):
                seen = await scrape(gateway)
            assert seen.value("mpack_task_last_success_timestamp_seconds", task=task) > 1e9
        assert seen.value("mpack_log_problems") == 0


async def test_no_label_holds_an_id(live_gateway: LiveGateway) -> None:
    """A series for each lease, repo or caller would be the end of anybody's Prometheus."""
    await push_and_fetch(live_gateway)
    await live_gateway.call("GET", "/nobody/knows-this-repo/refs")
    await live_gateway.call("GET", "/nothing/at/this/address")
    await live_gateway.http.request("PURGE", live_gateway.url + "/livez")
    seen = await scrape(live_gateway)
    values = {value for one in seen.samples for value in one.labels.values()}
    assert not [value for value in values if re.search(r"[0-9a-f]{16}|knows|nothing|PURGE", value)]
    assert seen.value("mpack_request_seconds_count", route="(none)", status="4xx") == 1
    assert seen.value("mpack_request_seconds_count", method="other", status="4xx") == 1


async def test_series_stand_there_before_anything_happens(live_gateway: LiveGateway) -> None:
    """A counter that appears with its first failure hides that failure from rate()."""
    seen = await scrape(live_gateway)
    for trigger in Trigger:
        for outcome in ("deleted", "already_gone", "failed", "handed_back"):
            assert seen.value("mpack_deletions_total", outcome=outcome, trigger=trigger) == 0
    assert seen.value("mpack_store_errors_total", call="delete_many") == 0
    assert not [name for name in seen.names if name.endswith("_created")]


async def test_a_scrape_of_the_cache_costs_no_statement(live_gateway: LiveGateway) -> None:
    first = await scrape(live_gateway)
    lease = await granted(live_gateway.service.engine, ttl_seconds=60)
    again = await scrape(live_gateway, anew=False)
    assert lease is not None
    assert again.value("mpack_leases", state="active") == 0
    assert again.value("mpack_stats_age_seconds") > first.value("mpack_stats_age_seconds")


async def test_without_a_database_the_last_numbers_are_told_with_their_age(
    live_gateway: LiveGateway,
) -> None:
    """The very hour in which somebody looks at it."""
    cache = live_gateway.service.stats_cache
    await granted(live_gateway.service.engine, ttl_seconds=60)
    await scrape(live_gateway)
    away = create_async_engine("postgresql+asyncpg://nobody@127.0.0.1:1/nothing")
    there, cache._database = cache._database, Database(away)
    try:
        cache._told_at -= 100
        seen = await scrape(live_gateway)
    finally:
        cache._database = there
        await away.dispose()
    assert seen.value("mpack_leases", state="active") == 1
    assert 100 < seen.value("mpack_stats_age_seconds") < 200
    assert (await scrape(live_gateway)).value("mpack_stats_age_seconds") < 10


async def test_a_slow_database_does_not_hold_a_scrape(live_gateway: LiveGateway) -> None:
    cache = live_gateway.service.stats_cache
    cache._took = 60.0  # With so many leases that they take a minute to read, ...
    cache._answered.set()
    cache._asked_at = cache._clock.monotonic() - 300
    before = cache._asked_at
    await scrape(live_gateway, anew=False)
    assert cache._asked_at == before  # ... they are not read again five minutes later.


async def test_gauges_and_stats_are_the_same_numbers(live_gateway: LiveGateway) -> None:
    await push_and_fetch(live_gateway)
    seen, stats = await scrape(live_gateway), await read_stats(live_gateway.service.database)
    assert seen.value("mpack_bytes_held") == stats.bytes_held
    assert seen.value("mpack_log_position") == stats.head_position
    assert seen.value("mpack_leases") == sum(stats.by_state.values())


async def test_with_a_token_only_its_holder_reads(database_url: str, tmp_path: Path) -> None:
    settings = settings_for(database_url, tmp_path / "data", metrics_token=Secret("s3cret"))
    async with serving(settings) as gateway:
        for token in (None, "wrong", "s3cre"):
            assert (await gateway.call("GET", "/metrics", token=token)).status == 401
        assert Scrape((await scrape(gateway, token="s3cret")).text).names


async def test_each_app_counts_for_itself(live_gateway: LiveGateway, tmp_path: Path) -> None:
    """Two in one process, as tests and hosts have them."""
    other = replace(live_gateway.service.settings, data_dir=tmp_path / "other", public_url=None)
    await push_and_fetch(live_gateway)
    async with serving(other) as second:
        assert (await scrape(second)).value("mpack_leases_issued_total") == 0
    response = await live_gateway.http.get(live_gateway.url + "/metrics")
    assert response.headers["content-type"] == TEXT_FORMAT


@pytest.mark.parametrize("path", ["/metrics?x=1", "/metrics"])
async def test_scrapes_are_open_without_a_token(live_gateway: LiveGateway, path: str) -> None:
    assert (await live_gateway.http.get(live_gateway.url + path)).status_code == 200
