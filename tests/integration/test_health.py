"""Probes: alive, ready, degraded, not ready."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import make_url

from gateway.embedded_postgres import EmbeddedPostgres
from gateway.service import NotMigrated, Service
from leases.database import Database
from leases.errors import StoreUnavailable
from leases.owner import OWNER_KEY, Mark, Ownership
from tests.databases import driver_url
from tests.fakes import ShiftedClock
from tests.integration.gateways import LiveGateway, settings_for


async def eventually_ready(gateway: LiveGateway) -> None:
    """The owner's mark is read in a task; here it is read now."""
    await gateway.service.engine.owner.check()


async def test_a_sound_gateway_is_ready(live_gateway: LiveGateway) -> None:
    await eventually_ready(live_gateway)
    assert (await live_gateway.call("GET", "/livez")).body == {"status": "ok"}
    answer = await live_gateway.call("GET", "/readyz")
    assert (answer.status, answer.body["status"]) == (200, "ok"), answer.body
    assert answer.body["checks"]["reaping"] == {"status": "ok", "state": "confirmed"}


async def test_paused_reaping_is_degraded(live_gateway: LiveGateway) -> None:
    engine = live_gateway.service.engine
    await engine.owner.check()
    foreign = Mark(log_id="somebody else's", position=1, hash="00")
    await live_gateway.service.store.put(OWNER_KEY, foreign.dump())
    assert await engine.owner.check() is Ownership.PAUSED
    answer = await live_gateway.call("GET", "/readyz")
    assert (answer.status, answer.body["status"]) == (200, "degraded")
    assert answer.body["checks"]["reaping"]["state"] == "paused"


async def test_an_open_circuit_is_degraded(live_gateway: LiveGateway) -> None:
    await eventually_ready(live_gateway)
    live_gateway.service.engine.reaper.circuit.opened()
    answer = await live_gateway.call("GET", "/readyz")
    assert answer.body["checks"]["reaping"]["circuit"] == "open"
    assert answer.status == 200


async def test_a_store_that_is_out_is_degraded(
    live_gateway: LiveGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def out(*_: object, **__: object) -> bytes:
        raise StoreUnavailable

    monkeypatch.setattr(live_gateway.service.store, "get", out)
    answer = await live_gateway.call("GET", "/readyz")
    assert (answer.status, answer.body["checks"]["store"]["status"]) == (200, "degraded")


async def test_a_clock_that_is_off_is_degraded(live_gateway: LiveGateway) -> None:
    await eventually_ready(live_gateway)
    clock = live_gateway.service.engine.database_clock
    clock._clock = ShiftedClock(timedelta(seconds=-3))
    clock.observe(clock.now(), asked_at=clock._clock.monotonic())
    answer = await live_gateway.call("GET", "/readyz")
    assert answer.status == 200
    assert answer.body["status"] == "degraded"


async def test_a_database_that_is_not_migrated_is_503(live_gateway: LiveGateway) -> None:
    await live_gateway.service.database.execute("UPDATE alembic_version SET version_num = 'old'")
    answer = await live_gateway.call("GET", "/readyz")
    assert (answer.status, answer.body["status"]) == (503, "unavailable")


async def test_a_database_that_takes_nobody_is_503(
    live_gateway: LiveGateway, database_url: str, postgres_server: EmbeddedPostgres
) -> None:
    """As during its maintenance; whoever is in is put out."""
    name = make_url(database_url).database
    operator = await asyncpg.connect(driver_url(postgres_server.url()))
    try:
        await operator.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        await operator.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name
        )
        answer = await live_gateway.call("GET", "/readyz")
        assert answer.status == 503
        assert answer.body["checks"]["database"]["detail"] == "the database does not answer"
        assert (await live_gateway.call("GET", "/livez")).status == 200
        await operator.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        assert (await live_gateway.call("GET", "/readyz")).status == 200
    finally:
        await operator.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        await operator.close()


async def test_nothing_starts_on_another_schema(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    await database.execute("DELETE FROM alembic_version")
    with pytest.raises(NotMigrated, match="db upgrade"):
        async with Service(settings_for(database_url, tmp_path / "data")):
            pass
