"""Revoking by repo or by prefix: all that was open, nothing else, in batches that may be cut."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest

from leases import revocation
from leases.database import Database
from leases.engine import LeaseEngine
from leases.ids import new_mpack_id
from leases.model import LeaseKind, Trigger
from leases.revocation import Chosen, Matching, Revocation
from tests.databases import run_apart
from tests.fakes import ListingStore
from tests.integration.commands import Commands
from tests.integration.gateways import settings_for
from tests.invariants import check_invariants
from tests.leasing import CALLER, another_database, due, engine_on, granted, granted_many, loaded


@pytest.fixture
async def engine(database_url: str, store: ListingStore) -> AsyncIterator[LeaseEngine]:
    async with another_database(database_url) as database, engine_on(database, store) as engine:
        yield engine


def job_on(engine: LeaseEngine, database: Database | None = None) -> Revocation:
    return Revocation(database or engine.database, engine.log, replica="test")


async def run(engine: LeaseEngine, chosen: Chosen, limit: int | None = None) -> list[int]:
    work = job_on(engine).batches(chosen, reason="a test", caller=CALLER, limit=limit)
    return [done.revoked async for done in work]


async def test_a_repo_is_revoked_in_batches_and_nothing_else(
    engine: LeaseEngine, store: ListingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revocation, "BATCH", 3)
    leases = await granted_many(engine, 7, ttl_seconds=60)
    other = await engine.lessor.reserve(
        mpack_id=new_mpack_id(), kind=LeaseKind.PACK, repo_id="another", caller=CALLER
    )
    chosen = Chosen(repo_id="repo-1")
    assert await job_on(engine).look(chosen) == Matching(leases=7, bytes=7 * len(b"a pack"))
    assert await run(engine, chosen, limit=4) == [3, 1]
    assert await run(engine, chosen) == [3]
    assert await run(engine, chosen) == []
    assert (await loaded(engine, other)).revoked_at is None
    for lease in leases:
        assert (await loaded(engine, lease)).revoked_at is not None
    assert (await engine.reaper.sweep(Trigger.COMMAND)).reclaimed == 7
    await check_invariants(engine.database, store)


async def test_what_is_over_is_left_alone(engine: LeaseEngine, store: ListingStore) -> None:
    ended = await granted(engine)
    await due(engine.database, ended)
    assert await run(engine, Chosen(id_prefix=ended.mpack_id[:4])) == []
    await engine.reaper.sweep(Trigger.COMMAND)
    assert await run(engine, Chosen()) == []
    await check_invariants(engine.database, store)


async def test_a_lease_that_is_renewed_meanwhile_is_met_again(
    engine: LeaseEngine, store: ListingStore
) -> None:
    """A batch is decided on what was read; whoever moved on since then is the next pass's."""
    leases = await granted_many(engine, 3, ttl_seconds=60)

    class Renewing(Database):
        renewed = False

        async def fetch(self, sql: str, *args: object) -> list[object]:  # type: ignore[override]  # rows as they are
            rows = await engine.database.fetch(sql, *args)
            if rows and "LIMIT" in sql and not self.renewed:
                self.renewed = True
                await engine.lessor.renew(leases[0].mpack_id, ttl_seconds=600, caller=CALLER)
            return list(rows)

    database = Renewing(engine.database.engine)
    work = job_on(engine, database).batches(Chosen(repo_id="repo-1"), reason="r", caller=CALLER)
    assert [(done.revoked, done.left) async for done in work] == [(2, 1), (1, 0)]
    assert (await loaded(engine, leases[0])).revoked_at is not None
    await engine.reaper.sweep(Trigger.COMMAND)
    await check_invariants(engine.database, store)


def test_the_command_looks_first_and_says_what_it_did(commands: Commands) -> None:
    ids = [commands.grant() for _ in range(3)]
    told = commands.json("lease", "revoke", "--repo", "r", "--dry-run")
    assert told == {"matched": 3, "bytes": 12, "revoked": 0, "dry_run": True}
    commands.run("lease", "revoke", "--repo", "r", exits=2)
    commands.run("lease", "revoke", ids[0], "--repo", "r", "--reason", "x", exits=2)
    commands.run("lease", "revoke", ids[0], "--dry-run", exits=2)
    commands.run("lease", "revoke", "--prefix", "xyz", "--reason", "x", exits=2)
    commands.run("lease", "revoke", "--repo", "o/r", "--reason", "x", exits=3)
    one = commands.json("lease", "revoke", "--prefix", ids[0], "--reason", "wrong")
    assert (one["matched"], one["revoked"]) == (1, 1)
    result = commands.run("lease", "revoke", "--repo", "r", "--reason", "wrong")
    assert "revoked: 2 of 2" in result.stderr
    commands.run("lease", "revoke", "--repo", "r", "--reason", "wrong", exits=3)
    commands.run("lease", "revoke", "--repo", "r", "--dry-run", exits=3)
    events = [json.loads(line) for line in commands.run("events", "export").stdout.splitlines()]
    reasons = [one["data"]["reason"] for one in events if one["type"] == "lease.revoked"]
    assert reasons == ["wrong"] * 3
    assert commands.json("sweep")["reclaimed"] == 3
    commands.run("audit", "verify")


LEASES = 3 * revocation.BATCH


def test_a_job_that_is_interrupted_goes_on_when_it_is_asked_again(commands: Commands) -> None:
    async def reserve() -> None:
        from gateway.service import Service

        settings = settings_for(commands.database_url, commands.data_dir)
        async with Service(settings, watch=False) as service:
            ids = {new_mpack_id(): "0" * 64 for _ in range(LEASES)}
            leases = service.engine.lessor.reserve_uploads(ids, repo_id="r", caller=CALLER)
            assert len([lease async for lease in leases]) == LEASES

    run_apart(reserve())
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "lease", "revoke", "--repo", "r", "--reason", "x"],
        env=commands.whole_environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        assert process.stderr.readline().strip() == f"revoked: {revocation.BATCH} of {LEASES:,}"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert "Traceback" not in err
    assert "revoked" in out
    done = commands.sql("SELECT count(revoked_at) FROM mpack_leases")
    assert isinstance(done, int)
    assert done % revocation.BATCH == 0
    assert process.returncode == (4 if done < LEASES else 0), err
    commands.run("lease", "revoke", "--repo", "r", "--reason", "x", exits=0 if done < LEASES else 3)
    assert commands.sql("SELECT count(revoked_at) FROM mpack_leases") == LEASES
    commands.run("audit", "verify")
