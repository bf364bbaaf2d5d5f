"""The store is out: what is refused at once, what is served all the same; nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from gateway.storage.availability import Availability, Need
from gateway.storage.watched import watched
from leases.database import Database
from leases.errors import StoreUnavailable
from leases.owner import OWNER_KEY
from leases.policy import LeasePolicy
from tests.factories import History, make_history
from tests.fakes import ListingStore, MemoryStore
from tests.integration.gateways import Answer, LiveGateway, serving, settings_for
from tests.integration.scraping import scrape
from tests.invariants import check_invariants
from tests.leasing import QUICK, engine_on, granted, reserved, until, until_reclaimed

REPO = "ada/demo"
# As fast as it goes: pauses and probes of milliseconds.
BRIEF = LeasePolicy(
    circuit_pause_seconds=0.05, circuit_pause_seconds_max=0.1, circuit_probe_seconds=0.5
)
# A second where nothing else runs; what it is told apart from takes half a minute.
AT_ONCE_SECONDS = 5.0


@dataclass(slots=True)
class Scene:
    """A gateway with a repo, and what is wrong with its store."""

    gateway: LiveGateway
    history: History
    token: str
    broken: set[str] = field(default_factory=set)
    bad_keys: set[str] = field(default_factory=set)

    def meddle(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Calls named in `broken`, and any about `bad_keys`, fail as in an outage."""
        store: Any = self.gateway.service.store

        def breaking(name: str) -> None:
            real = getattr(store, name)

            async def call(key: Any, *args: Any) -> Any:
                keys = [key] if isinstance(key, str) else key
                if name in self.broken or self.bad_keys.intersection(keys):
                    raise StoreUnavailable
                return await real(key, *args)

            monkeypatch.setattr(store, name, call)

        for name in ("get", "put", "head", "delete", "delete_many"):
            breaking(name)

    async def fetch(self, *, inline: bool = False, **options: Any) -> Answer:
        path = f"/{REPO}/fetch" if inline else f"/{REPO}/fetch/mpack"
        want = [self.history.head.commit_id]
        return await self.gateway.call("POST", path, {"want": want, "have": [], **options})

    async def push_objects(self, history: History) -> Answer:
        body = {"objects": history.objects()}
        return await self.gateway.call("POST", f"/{REPO}/push/objects", body, token=self.token)

    async def is_out(self, *needs: Need) -> bool:
        return all(self.gateway.service.availability.is_out(need) for need in needs)

    async def count(self, table: str) -> int:
        row = await self.gateway.service.database.row(f"SELECT count(*) AS n FROM {table}")
        return int(row["n"])

    async def go_out(self, *calls: str, needs: tuple[Need, ...] = tuple(Need)) -> None:
        """Let these calls fail, and wait until somebody's failed fetch has made it known."""
        self.broken |= set(calls)
        assert (await self.fetch(share=False)).status == 503
        await until(lambda: self.is_out(*needs))

    async def come_back(self) -> None:
        """Heal it, and wait until it is noticed."""
        self.broken.clear()

        async def noticed() -> bool:
            return not any([await self.is_out(need) for need in Need])

        await until(noticed)


@pytest.fixture
async def scene(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Scene]:
    async with serving(settings_for(database_url, tmp_path / "data", lease=BRIEF)) as gateway:
        await gateway.service.engine.owner.check()
        history = make_history(1, commits=4)
        token = await gateway.token("push")
        assert (await gateway.push(REPO, history, token=token)).status == 200
        scene = Scene(gateway, history, token)
        scene.meddle(monkeypatch)
        yield scene
        await scene.come_back()
        service = gateway.service
        await check_invariants(service.database, service.store, at_rest=False)


@contextmanager
def at_once() -> Iterator[None]:
    began = asyncio.get_running_loop().time()
    yield
    assert asyncio.get_running_loop().time() - began < AT_ONCE_SECONDS


def assert_refused(answer: Answer) -> None:
    assert (answer.status, answer.body["code"]) == (503, "store_unavailable"), answer.body
    assert 1 <= int(answer.headers["Retry-After"]) <= 10


async def test_a_fetch_is_refused_at_once_and_reserves_nothing(scene: Scene) -> None:
    await scene.go_out("get", "put")
    leases, slots = await scene.count("mpack_leases"), await scene.count("pack_slots")
    for options in ({}, {"share": False}):
        with at_once():
            assert_refused(await scene.fetch(**options))
    assert (await scene.count("mpack_leases"), await scene.count("pack_slots")) == (leases, slots)
    await scene.come_back()
    assert (await scene.fetch()).status == 200


async def test_a_pack_that_is_there_still_gets_its_url(scene: Scene) -> None:
    """Signing asks nobody, and its holder may reach the store when we do not."""
    first = await scene.fetch()
    await scene.go_out("get", "put")
    with at_once():
        again = await scene.fetch()
    assert (again.status, again.body["shared"]) == (200, True)
    assert again.body["mpack_id"] == first.body["mpack_id"]


async def test_while_the_store_takes_nothing_packs_are_answered_inline(scene: Scene) -> None:
    whole = await scene.fetch(inline=True)
    await scene.go_out("put", needs=(Need.WRITING,))
    assert not await scene.is_out(Need.READING)
    leases = await scene.count("mpack_leases")
    with at_once():
        assert_refused(await scene.fetch(share=False))
    answer = await scene.fetch(inline=True)
    assert answer.status == 200
    assert answer.body == whole.body
    assert await scene.count("mpack_leases") == leases
    scene.broken.add("get")
    assert (await scene.fetch(inline=True)).status == 503
    await until(lambda: scene.is_out(Need.READING))
    with at_once():
        assert_refused(await scene.fetch(inline=True))


async def test_a_push_is_refused_at_once_and_loses_nothing(scene: Scene) -> None:
    await scene.go_out("get", "put")
    more = make_history(2, commits=3)
    segments = await scene.count("segments")
    with at_once():
        assert_refused(await scene.push_objects(more))
    assert await scene.count("segments") == segments, "not even a pending row"
    known = await scene.gateway.push(REPO, scene.history, token=scene.token)
    assert known.status == 200, "a push of what is known needs no store"
    await scene.come_back()
    pushed = await scene.gateway.push(REPO, more, token=scene.token, branch="other")
    assert pushed.status == 200, pushed.body


async def test_nobody_is_handed_an_url_to_upload_to_a_store_that_is_out(scene: Scene) -> None:
    await scene.go_out("get", "put")
    leases = await scene.count("mpack_leases")
    body = {"object_ids": ["ab" * 32], "direction": "put"}
    with at_once():
        answer = await scene.gateway.call("POST", f"/{REPO}/presign", body, token=scene.token)
    assert_refused(answer)
    assert await scene.count("mpack_leases") == leases


async def test_one_bad_segment_refuses_nobody_else(scene: Scene) -> None:
    """Its reader gets a 503 after its tries; the store is asked, answers, and stays open to all."""
    keys = [row["storage_key"] for row in await scene.gateway.service.database.fetch(_SEGMENTS)]
    other = make_history(5, commits=2)
    assert (await scene.gateway.push("ada/other", other, token=scene.token)).status == 200
    scene.bad_keys.update(keys)
    for _ in range(3):
        assert (await scene.fetch(share=False)).status == 503
        want = {"want": [other.head.commit_id], "have": [], "share": False}
        assert (await scene.gateway.call("POST", "/ada/other/fetch/mpack", want)).status == 200
    assert not await scene.is_out(Need.READING)
    seen = await scrape(scene.gateway)
    assert seen.value("mpack_circuit_openings_total") == 0
    assert seen.value("mpack_circuit_probes_total", circuit="reading", result="ok") >= 1
    scene.bad_keys.clear()


_SEGMENTS = "SELECT storage_key FROM segments"


async def test_what_the_reaper_finds_out_spares_the_next_fetch(scene: Scene) -> None:
    """Nobody has to run into it first."""
    scene.broken |= {"get", "put", "delete_many", "delete"}
    engine = scene.gateway.service.engine
    lease = await _granted_past(scene)
    await until(lambda: scene.is_out(*Need))
    assert engine.reaper.circuit.is_open
    with at_once():
        assert_refused(await scene.fetch(share=False))
    scene.broken.clear()
    (found,) = await until_reclaimed(engine, lease)
    assert found.lateness_ms is not None
    row = await scene.gateway.service.database.row("SELECT max(attempts) AS n FROM mpack_leases")
    assert row["n"] == 0


async def _granted_past(scene: Scene) -> Any:
    """A lease with its blob, granted although the store takes nothing any more."""
    broken, scene.broken = scene.broken, set()
    lease = await granted(scene.gateway.service.engine)
    scene.broken = broken
    return lease


async def test_readiness_metrics_and_stats_say_so(scene: Scene) -> None:
    await scene.go_out("get", "put", "delete_many")
    with at_once():
        ready = await scene.gateway.call("GET", "/readyz")
    store = ready.body["checks"]["store"]
    assert (ready.status, ready.body["status"]) == (200, "degraded")
    assert store["circuits"] == {"reading": "open", "writing": "open"}
    assert "does not answer" in store["detail"]
    seen = await scrape(scene.gateway)
    for circuit in ("reading", "writing"):
        assert seen.value("mpack_circuit_open", circuit=circuit) == 1
        assert seen.value("mpack_circuit_allowed_ratio", circuit=circuit) == 0
        assert seen.value("mpack_circuit_openings_total", circuit=circuit) == 1
        assert seen.value("mpack_circuit_probes_total", circuit=circuit, result="failed") >= 1
    await scene.come_back()
    assert (await scene.fetch()).status == 200
    assert (await scrape(scene.gateway)).value("mpack_circuit_allowed_ratio", circuit="writing") > 0


async def test_a_call_that_hangs_is_asked_about_before_it_ends(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen store is known in seconds, although its first victims wait for half a minute."""
    ended = asyncio.Event()

    async def hang(*_: object, **__: object) -> bytes:
        await ended.wait()
        raise StoreUnavailable

    with monkeypatch.context() as frozen:
        frozen.setattr(scene.gateway.service.store, "get", hang)
        victim = asyncio.ensure_future(scene.fetch(share=False))
        await until(lambda: scene.is_out(Need.READING))
        assert not victim.done()
        with at_once():
            assert_refused(await scene.fetch(share=False))
    ended.set()
    assert_refused(await victim)


# The parts. --------------------------------------------------------------------------------------


async def test_after_an_outage_two_requests_go_first(database: Database) -> None:
    async with engine_on(
        database, ListingStore(), replace(QUICK, circuit_pause_seconds=0.05)
    ) as engine:
        availability = Availability(engine)
        circuit = availability.circuits["reading"]
        circuit.opened()
        with pytest.raises(StoreUnavailable) as refusal, availability.turn(Need.READING):
            pass
        assert refusal.value.fields["retry_after_seconds"] > 1
        circuit.probed(answered=True)
        with availability.turn(Need.READING), availability.turn(Need.READING):
            assert not availability.may(Need.READING)
            with pytest.raises(StoreUnavailable), availability.turn(Need.READING):
                pass
        assert availability.may(Need.READING)
        assert circuit.allowed_ratio == 4 / 16
        with pytest.raises(ValueError, match="x"), availability.turn(Need.READING):
            raise ValueError("x")
        assert circuit.allowed_ratio == 4 / 16


async def test_writing_is_asked_about_with_the_mark_as_it_is(database: Database) -> None:
    store = ListingStore()
    async with engine_on(database, store) as engine:
        before = store.blobs[OWNER_KEY]
        puts = len(store.calls_of("put", OWNER_KEY))
        await reserved(engine)
        await engine.owner.touch()
        assert store.blobs[OWNER_KEY] == before
        assert len(store.calls_of("put", OWNER_KEY)) == puts + 1
        store.blobs[OWNER_KEY] = b'{"log_id": "another", "position": 1, "hash": ""}'
        await engine.owner.touch()
        assert len(store.calls_of("put", OWNER_KEY)) == puts + 1, "a mark of others is theirs"


async def test_a_hosts_store_shows_no_more_than_it_has(database: Database) -> None:
    async with engine_on(database, MemoryStore()) as engine:
        plain = watched(MemoryStore(), Availability(engine))
        listing = watched(ListingStore(), Availability(engine))
        assert not hasattr(plain, "head")
        assert hasattr(listing, "head")
        assert not hasattr(listing, "presign_put")
        await plain.put("a", b"x")
        assert await plain.get("a") == b"x"
        await plain.delete("a")
        assert "expires_in=3" in await plain.presign_get("a", expires_in=3)
