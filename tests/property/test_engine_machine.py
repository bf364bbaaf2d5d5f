"""The engine on real PostgreSQL against a model: any order of commands, crashes and restarts.

The model is a dozen lines: what a lease is, when its promise ends, whether its blob is there. The
database's clock is the real one, so deadlines are long past or far ahead, never near: a command's
answer is then certain. What the clock decides to the millisecond is in tests/integration.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from leases.engine import LeaseEngine
from leases.errors import Conflict, LeaseEnded, LeaseMissing
from leases.ids import new_event_id
from leases.model import Trigger
from tests.databases import NewDatabase
from tests.fakes import ListingStore
from tests.invariants import check_invariants
from tests.leasing import (
    BLOB,
    BLOB_SHA256,
    CALLER,
    QUICK,
    another_database,
    engine_on,
    reserved,
)

T = TypeVar("T")
LONG_SECONDS = 3600.0
REFUSALS = (LeaseEnded, LeaseMissing, Conflict)
# An example is a database and fifty commands: as long as a dozen of others.
SETTINGS = settings(
    max_examples=max(8, settings().max_examples // 12),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@dataclass(slots=True, eq=False)
class Model:
    """What a lease must be."""

    mpack_id: str
    key: str
    state: str = "reserved"
    revoked: bool = False
    stored: bool = False
    events: int = 1

    @property
    def due(self) -> bool:
        """Whether a sweep takes it."""
        return self.state != "reclaimed" and self.revoked


class EngineMachine(RuleBasedStateMachine):
    """Two replicas on one database and one store."""

    leases = Bundle("leases")

    def __init__(self, new_database: NewDatabase) -> None:
        super().__init__()
        self.store = ListingStore()
        self.models: dict[str, Model] = {}
        self._runner = asyncio.Runner()
        self._clone = new_database()
        self._url = self._clone.__enter__()
        self._open = AsyncExitStack()
        self.replicas: list[LeaseEngine] = []
        self.run(self._start)

    def run(self, work: Callable[[], Awaitable[T]]) -> T:
        async def whole() -> T:
            return await work()

        return self._runner.run(whole())

    async def _start(self) -> None:
        self.replicas = []
        for _ in range(2):
            database = await self._open.enter_async_context(another_database(self._url))
            engine = await self._open.enter_async_context(engine_on(database, self.store, QUICK))
            self.replicas.append(engine)

    def teardown(self) -> None:
        async def rest() -> None:
            engine = self.replicas[0]
            for model in self.models.values():
                if model.state != "reclaimed" and not model.revoked:
                    await engine.lessor.revoke(model.mpack_id, reason="the end", caller=CALLER)
            await engine.reaper.sweep(Trigger.COMMAND)
            await engine.reconciler.run_once()
            await check_invariants(engine.database, self.store)
            await self._open.aclose()

        try:
            self.run(rest)
        finally:
            self._runner.close()
            self._clone.__exit__(None, None, None)

    def _expect(self, allowed: bool, work: Callable[[], Awaitable[Any]]) -> None:
        """It is carried out if and only if the model allows it."""
        try:
            self.run(work)
        except REFUSALS:
            assert not allowed, "refused what it should have done"
        else:
            assert allowed, "did what it should have refused"

    # What callers ask. -------------------------------------------------------------------------

    @rule(target=leases, replica=st.integers(0, 1), count=st.integers(1, 3))
    def reserve(self, replica: int, count: int) -> Any:
        made = []
        for _ in range(count):
            lease = self.run(lambda: reserved(self.replicas[replica]))
            model = Model(lease.mpack_id, lease.storage_key)
            self.models[lease.mpack_id] = model
            made.append(model)
        return multiple(*made)

    @rule(model=leases)
    def put(self, model: Model) -> None:
        """Whoever builds stores only while its reservation stands."""
        if model.state == "reserved" and not model.due:
            self.run(lambda: self.store.put(model.key, BLOB))
            model.stored = True

    @rule(model=leases, replica=st.integers(0, 1))
    def activate(self, model: Model, replica: int) -> None:
        if not model.stored and model.state == "reserved":
            return
        again = model.state == "active"
        allowed = (model.state == "reserved" and not model.due) or again
        engine = self.replicas[replica]
        self._expect(
            allowed,
            lambda: engine.lessor.activate(
                model.mpack_id,
                sha256=BLOB_SHA256,
                size_bytes=len(BLOB),
                ttl_seconds=LONG_SECONDS,
                caller=CALLER,
            ),
        )
        if allowed and not again:
            model.state, model.events = "active", model.events + 1

    @rule(model=leases, replica=st.integers(0, 1), factor=st.sampled_from([0.5, 2.0, 3.0]))
    def renew(self, model: Model, replica: int, factor: float) -> None:
        engine = self.replicas[replica]
        before = self.run(lambda: loaded_by_id(engine, model.mpack_id))
        allowed = model.state == "active" and not model.revoked
        self._expect(
            allowed,
            lambda: engine.lessor.renew(
                model.mpack_id, ttl_seconds=factor * LONG_SECONDS, caller=CALLER
            ),
        )
        if allowed:
            after = self.run(lambda: loaded_by_id(engine, model.mpack_id))
            assert after.expires_at >= before.expires_at, "a renewal shortened"
            model.events = after.version

    @rule(model=leases, replica=st.integers(0, 1))
    def revoke(self, model: Model, replica: int) -> None:
        engine = self.replicas[replica]
        self.run(lambda: engine.lessor.revoke(model.mpack_id, reason="wanted", caller=CALLER))
        if model.state != "reclaimed" and not model.revoked:
            model.revoked, model.events = True, model.events + 1

    # What runs by itself, and what goes wrong. ---------------------------------------------------

    @rule(both=st.booleans())
    def sweep(self, both: bool) -> None:
        """By one replica, or by both at once."""

        async def work() -> list[Any]:
            engines = self.replicas if both else self.replicas[:1]
            return await asyncio.gather(
                *(engine.reaper.sweep(Trigger.COMMAND) for engine in engines)
            )

        due = [model for model in self.models.values() if model.due]
        results = self.run(work)
        assert sum(result.reclaimed for result in results) == len(due)
        for model in due:
            model.state, model.stored, model.events = "reclaimed", False, model.events + 1

    @rule(model=consumes(leases))
    def a_late_put_lands(self, model: Model) -> None:
        """A put that timed out comes after the deletion: reconcile finds it."""
        if model.state != "reclaimed":
            return
        self.run(lambda: self.store.put(model.key, BLOB))
        result = self.run(self.replicas[1].reconciler.run_once)
        assert result.residue_deleted == 1
        model.events += 1

    @rule()
    def reconcile(self) -> None:
        result = self.run(self.replicas[0].reconciler.run_once)
        assert (result.adopted, result.residue_deleted, result.findings) == (0, 0, [])

    @rule(claims=st.booleans())
    def restart(self, claims: bool) -> None:
        """Both replicas start anew; claims that the one left are freed, as the look-ahead does."""

        async def work() -> None:
            if claims:
                await self.replicas[0].reaper._claims.take(10, new_event_id())
            await self._open.aclose()
            await self._start()
            await self.replicas[1].alarm._look()

        self.run(work)

    @invariant()
    def the_table_and_the_store_are_the_model(self) -> None:
        rows = self.run(lambda: self.replicas[1].database.fetch("SELECT * FROM mpack_leases"))
        found = {row["mpack_id"]: (row["state"], row["version"]) for row in rows}
        assert found == {m.mpack_id: (m.state, m.events) for m in self.models.values()}
        blobs = {key for key in self.store.blobs if not key.endswith(".owner")}
        assert blobs == {model.key for model in self.models.values() if model.stored}


async def loaded_by_id(engine: LeaseEngine, mpack_id: str) -> Any:
    found, _now = await engine.lessor.load(mpack_id)
    return found


@pytest.mark.timeout(240)
def test_the_engine_is_its_model(new_database: NewDatabase) -> None:
    machine: Any = partial(EngineMachine, new_database)
    run_state_machine_as_test(machine, settings=SETTINGS)
