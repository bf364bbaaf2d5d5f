"""deploy/grants.sql: the gateway does all its work with these rights, and nothing to the log."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy.engine import make_url

from gateway.auth import Scope
from gateway.doctor.database import look_at_grants
from gateway.doctor.finding import Health
from gateway.packs.garbage import Garbage
from leases.errors import DatabaseRefused, LeaseEnded
from leases.lessor import Caller
from leases.model import Trigger
from tests.databases import driver_url, run_apart
from tests.factories import History
from tests.integration.gateways import LiveGateway, serving, settings_for
from tests.leasing import connection_to, granted, until_reclaimed
from tests.unit.test_tidy import TOP

CALLER = Caller(actor="test")


async def _execute(url: str, sql: str) -> None:
    async with connection_to(url) as connection:
        await connection.execute(sql)


@pytest.fixture
def role_url(database_url: str) -> Iterator[str]:
    """The database as the service's role sees it; the owner has run the file twice."""
    name = f"gateway_{uuid4().hex[:8]}"
    grants = (TOP / "deploy/grants.sql").read_text()
    for sql in (grants, grants, f"CREATE ROLE {name} LOGIN IN ROLE mpack_gateway"):
        run_apart(_execute(database_url, sql))
    yield make_url(database_url).set(username=name).render_as_string(hide_password=False)
    run_apart(_execute(database_url, f"DROP ROLE {name}"))


@pytest.fixture
async def gateway(role_url: str, tmp_path: Path) -> AsyncIterator[LiveGateway]:
    async with serving(settings_for(role_url, tmp_path / "data")) as gateway:
        yield gateway


async def test_the_doctor_asks_for_no_more_than_these(gateway: LiveGateway) -> None:
    findings = [finding async for finding in look_at_grants(gateway.service.database)]
    assert [(one.check, one.health) for one in findings] == [
        ("grants", Health.OK),
        ("append-only", Health.OK),
    ], findings


async def test_the_whole_work_is_done_with_these_rights(gateway: LiveGateway) -> None:
    service, history = gateway.service, History()
    history.commit({"a.txt": history.content(b"a" * 5000)})
    token = await gateway.token("push")
    pushed = await gateway.push("o/r", history, token=token)
    assert pushed.status == 200, pushed.body
    want = {"want": [pushed.body["branch_heads"]["main"]], "ttl_seconds": 60}
    for path in ("fetch", "fetch/mpack", "fetch/mpack"):
        answer = await gateway.call("POST", f"/o/r/{path}", want)
        assert answer.status == 200, answer.body
    revoked = await service.engine.lessor.revoke(
        answer.body["mpack_id"], reason="test", caller=CALLER
    )
    await until_reclaimed(service.engine, revoked)
    with pytest.raises(LeaseEnded):
        await service.engine.lessor.renew(revoked.mpack_id, ttl_seconds=60, caller=CALLER)
    await until_reclaimed(service.engine, await granted(service.engine, ttl_seconds=0.01))
    await service.engine.reaper.sweep(Trigger.COMMAND)
    await service.engine.reconciler.run_once()
    assert (await service.engine.auditor.verify()).ok
    issued = await service.tokens.create(name="other", scopes=[Scope.READ])
    await service.tokens.revoke(issued.token_id)
    await service.repos.delete(owner="o", slug="r", caller=CALLER)
    garbage = Garbage(service.database, service.engine.log, service.store)
    removed = [
        one async for one in garbage.collect(caller=CALLER, unfinished_after=timedelta(seconds=0))
    ]
    assert removed
    await service.packs.sharing.slots.forget_old(0)
    readiness = await gateway.call("GET", "/readyz")
    assert (readiness.status, readiness.body["status"]) == (200, "ok"), readiness.body
    assert (await gateway.http.get(gateway.url + "/metrics")).status_code == 200


async def test_a_rebuild_is_refused_with_a_reason(gateway: LiveGateway, database_url: str) -> None:
    """It is the owner's; whoever runs it as the service reads why, and no traceback."""
    await granted(gateway.service.engine, ttl_seconds=60)
    await _execute(database_url, "UPDATE mpack_leases SET size_bytes = 7")
    with pytest.raises(DatabaseRefused, match="permission denied"):
        await gateway.service.engine.auditor.rebuild()
    await _execute(database_url, "UPDATE mpack_leases SET size_bytes = 4")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET actor = 'nobody'",
        "DELETE FROM events",
        "DELETE FROM events_p000000",
        "TRUNCATE events",
        "ALTER TABLE events DISABLE TRIGGER ALL",
        "INSERT INTO events SELECT * FROM events",
        "UPDATE event_head SET position = 0",
        "DELETE FROM event_streams",
        "UPDATE mpack_leases SET delete_at = now() + interval '1 year'",
        "UPDATE mpack_leases SET state = 'reclaimed'",
        "INSERT INTO mpack_leases SELECT * FROM mpack_leases",
        "DELETE FROM mpack_leases",
        "DELETE FROM api_tokens",
        "SELECT make_event_partition(7)",
        "CREATE TABLE mine (x int)",
        "DROP TABLE repos",
        "UPDATE alembic_version SET version_num = '0000'",
    ],
)
async def test_the_log_is_out_of_reach(role_url: str, statement: str) -> None:
    connection = await asyncpg.connect(driver_url(role_url))
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)
    finally:
        await connection.close()
