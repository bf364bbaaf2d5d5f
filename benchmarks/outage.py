"""A store outage with 60,000 leases due, under a load of fetches and pushes.

A gateway, the real command in a process of its own, on Ceph's S3 gateway, which it reaches through
a proxy of this process. All leases fall due as the outage begins: a third of it the proxy answers
503 SlowDown, a third it resets connections, a third it says nothing. Packs are fetched (each a new
one, to be built and stored) and objects pushed at a steady pace, before it, throughout, and after
it. The minute stands for ten: pauses reach their bound in its first seconds, and from then on every
minute of an outage is like the last. `Outage` is the scale; the settings are the defaults.

The control deletes blobs of the same store in a bare loop of DeleteObjects, on as many connections,
through the proxy too: what the proxy costs is no part of what is compared.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import asyncpg
import httpx2
import msgpack

from benchmarks import lease_facts
from benchmarks.figures import Benchmark, Figure, Run
from benchmarks.place import CALLER, Home, Place, serving
from benchmarks.reclaims import in_batches
from benchmarks.replicas import bare_deletions, put_all
from benchmarks.served import ServedGateway
from gateway import environment
from gateway.auth import Scope
from gateway.demo.store import S3Bucket
from gateway.service import Service
from gateway.storage.s3_settings import S3Settings
from gateway.wire.body import decode
from gateway.wire.messages import PushObject, PushRequest
from leases.ids import new_mpack_id
from leases.model import storage_key
from tests.factories import make_history, push_body
from tests.fault.s3_faults import black_hole, reset_before, slow_down
from tests.s3_proxy import S3Proxy, s3_proxied

_REPO = "ada/demo"
_MSGPACK = "application/x-msgpack"
_GRANTED_PER_SECOND = 3000  # A third of what is possible.
_POLL_SECONDS = 0.05
_WAIT_SECONDS_MAX = 300.0
_CONTROL_BLOBS = 5000
_ANSWER_SECONDS_MAX = 60.0
_DUE_LEFT = "SELECT count(*) FROM mpack_leases WHERE state <> 'reclaimed' AND delete_at <= $1"
_FOUND = """
SELECT count(*) FILTER (WHERE stuck) AS stuck, max(attempts) AS attempts,
       count(*) FILTER (WHERE reclaimed_at < delete_at) AS early FROM mpack_leases"""
_RECLAIMED = """
SELECT count(*) AS reclaimed, extract(epoch FROM min(recorded_at))::float8 AS first,
       extract(epoch FROM max(recorded_at))::float8 AS last
FROM events AS e JOIN mpack_leases AS l ON e.stream = 'lease/' || l.mpack_id
WHERE e.type = 'lease.reclaimed' AND e.recorded_at > to_timestamp($1) AND l.repo_id = 'benchmark'"""
_RESERVED_BETWEEN = """
SELECT count(*) FROM events WHERE type = 'lease.reserved'
AND recorded_at BETWEEN to_timestamp($1) AND to_timestamp($2)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """How large, how long, and under which load; `settings` are variables of the gateway."""

    leases: int = 60_000
    seconds: float = 60.0
    before_seconds: float = 15.0
    fetches_per_second: float = 4.0
    pushes_per_second: float = 1.0
    settings: Mapping[str, str] = field(default_factory=dict)


# A tenth of the pauses: as long an outage in a tenth of the time.
QUICK = Outage(
    leases=300,
    seconds=3.0,
    before_seconds=1.5,
    settings={
        "MPACK_CIRCUIT_PAUSE_SECONDS": "0.1",
        "MPACK_CIRCUIT_PAUSE_SECONDS_MAX": "0.5",
        "MPACK_CIRCUIT_PROBE_SECONDS": "0.3",
        "MPACK_DELETE_TIMEOUT_SECONDS": "1",
        "MPACK_RETRY_FIRST_SECONDS": "0.1",
    },
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """What stands before the gateway starts; times are epoch seconds of the database."""

    due_at: float
    want: str
    token: str


async def _control(home: Home, outage: Outage) -> float:
    """Deleted blobs a second of a bare loop."""
    async with serving(home, watch=False) as service:
        await service.engine.owner.check()
        count = min(_CONTROL_BLOBS, outage.leases)
        keys = [f"transient/control/{new_mpack_id()}" for _ in range(count)]
        workers = service.settings.lease.reap_workers
        return await bare_deletions(service, home, keys, callers=workers)


async def _prepare(home: Home, outage: Outage) -> _Prepared:
    async with serving(home, watch=False) as service:
        await service.engine.owner.check()
        mpack_ids = [new_mpack_id() for _ in range(outage.leases)]
        await put_all(service, home, [storage_key(service.engine.log_id, one) for one in mpack_ids])
        history = await _push_history(service)
        token = (await service.tokens.create(name="benchmark", scopes=[Scope.PUSH])).secret
        now = (await service.engine.log.head())["now"]
        lead = outage.leases / _GRANTED_PER_SECOND + 5 + outage.before_seconds
        due_at = now + timedelta(seconds=lead)
        for batch in in_batches(mpack_ids):
            log_id = service.engine.log_id
            await service.engine.log.append(
                [lease_facts.reserved(one, log_id=log_id, now=now) for one in batch]
            )
            await service.engine.log.append(
                [lease_facts.activated(one, now=now, delete_at=due_at) for one in batch]
            )
    return _Prepared(due_at=due_at.timestamp(), want=history, token=token)


async def _push_history(service: Service) -> str:
    """A small repo; its head."""
    owner, slug = _REPO.split("/")
    repo = await service.repos.ensure(owner=owner, slug=slug, visibility="public", caller=CALLER)
    history = make_history(1, commits=6)
    objects = [PushObject(**item) for item in history.objects()]
    await service.segments.store(repo.repo_id, objects, CALLER)
    request = decode(push_body(history.bundle()), PushRequest, limits=service.settings.wire)
    await service.pushes.push(repo, request, CALLER)
    return history.head.commit_id


@dataclass(frozen=True, slots=True)
class _Asked:
    """One request of the load, in epoch seconds."""

    what: str
    began: float
    ended: float
    status: int


class _Load:
    """Fetches and pushes at a steady pace, whatever becomes of them."""

    def __init__(self, gateway: ServedGateway, prepared: _Prepared) -> None:
        self.asked: list[_Asked] = []
        self._news = asyncio.Event()
        self._prepared = prepared
        self._numbers = 0
        self._http = httpx2.AsyncClient(
            base_url=gateway.url,
            timeout=_ANSWER_SECONDS_MAX,
            trust_env=False,
            headers={
                "Authorization": f"Bearer {prepared.token}",
                "Content-Type": _MSGPACK,
                "Accept": _MSGPACK,
            },
        )

    @asynccontextmanager
    async def running(self, outage: Outage) -> AsyncIterator[None]:
        async with self._http, asyncio.TaskGroup() as requests, asyncio.TaskGroup() as paces:
            pacing = [
                paces.create_task(_paced(requests, self._fetch, outage.fetches_per_second)),
                paces.create_task(_paced(requests, self._push, outage.pushes_per_second)),
            ]
            try:
                yield
            finally:
                for task in pacing:
                    task.cancel()

    async def is_served_since(self, moment: float) -> None:
        """Wait for a pack that was asked for after this."""
        async with asyncio.timeout(_WAIT_SECONDS_MAX):
            while not any(one.status == 200 and one.began > moment for one in self.asked):
                await self._news.wait()
                self._news.clear()

    async def _fetch(self) -> None:
        wish = {"want": [self._prepared.want], "have": [], "share": False, "ttl_seconds": 5}
        await self._ask("fetch", f"/{_REPO}/fetch/mpack", wish)

    async def _push(self) -> None:
        self._numbers += 1
        content = f"object {self._numbers}".encode() * 100
        item = make_history(self._numbers, commits=1)
        objects = [*item.objects(), {"object_id": item.content(content), "content": content}]
        await self._ask("push", f"/{_REPO}/push/objects", {"objects": objects})

    async def _ask(self, what: str, path: str, body: object) -> None:
        began = time.time()
        try:
            answer = await self._http.post(path, content=msgpack.packb(body))
            status = answer.status_code
        except httpx2.TransportError:
            status = 0
        self.asked.append(_Asked(what, began, time.time(), status))
        self._news.set()


async def _paced(
    requests: asyncio.TaskGroup, one: Callable[[], Awaitable[None]], per_second: float
) -> None:
    began, number = time.monotonic(), 0
    while True:
        number += 1
        requests.create_task(_awaited(one()))
        await asyncio.sleep(began + number / per_second - time.monotonic())


async def _awaited(work: Awaitable[None]) -> None:
    await work


@dataclass(slots=True, kw_only=True)
class _Times:
    """Epoch seconds, and how many requests the store had been sent by then."""

    normal: float = 0.0
    began: float = 0.0
    healed: float = 0.0
    sent: dict[str, int] = field(default_factory=dict)


async def _suffer(proxy: S3Proxy, outage: Outage, due_at: float) -> _Times:
    """The time before the outage, and the outage itself."""
    times = _Times(normal=time.time())
    times.sent["normal"] = len(proxy.requests)
    await asyncio.sleep(max(0.0, due_at - 0.2 - time.time()))
    times.began = time.time()
    times.sent["began"] = len(proxy.requests)
    for fault in (slow_down, reset_before, black_hole):
        proxy.fault = fault
        await asyncio.sleep(outage.seconds / 3)
    times.healed = time.time()
    times.sent["healed"] = len(proxy.requests)
    proxy.fault = None
    return times


async def _drained(connection: asyncpg.Connection[asyncpg.Record], prepared: _Prepared) -> None:
    async with asyncio.timeout(_WAIT_SECONDS_MAX):
        due_at = await connection.fetchval("SELECT to_timestamp($1)", prepared.due_at)
        while await connection.fetchval(_DUE_LEFT, due_at):  # noqa: ASYNC110  another process
            await asyncio.sleep(_POLL_SECONDS)


def _fetched_again(load: _Load, times: _Times) -> float:
    """How long after its end a pack was fetched, in seconds."""
    good = [one.ended for one in load.asked if one.what == "fetch" and one.status == 200]
    return min(ended for ended in good if ended > times.healed) - times.healed


async def measure(place: Place, home: Home, server: S3Bucket, outage: Outage) -> Run:
    """One outage, on a bucket of this server; what is asked of it stands in `OUTAGE.figures`."""
    connection = await asyncpg.connect(home.driver_url)
    endpoint = server.settings()["MPACK_S3_ENDPOINT"]
    async with s3_proxied(endpoint) as proxy:
        behind = replace(home, s3=replace(home.s3, s3_endpoint=proxy.url))
        control = await place.apart(_control, behind, outage)
        prepared = await place.apart(_prepare, home, outage)
        through = {**server.settings(), "MPACK_S3_ENDPOINT": proxy.url, **outage.settings}
        gateway = ServedGateway.start(home, token=prepared.token, settings=through)
        try:
            async with httpx2.AsyncClient(base_url=gateway.url, trust_env=False) as http:
                await gateway.answers(http, seconds_max=30)
            load = _Load(gateway, prepared)
            async with load.running(outage):
                times = await _suffer(proxy, outage, prepared.due_at)
                await _drained(connection, prepared)
                await load.is_served_since(times.healed)
        finally:
            gateway.end()
        known = gateway.said_at("store_out", circuit="writing")
        found = await _found(connection, load, times, known)
    await connection.close()
    return found | {
        "leases": outage.leases,
        "control_per_second": control,
        "ratio": found["per_second"] / control,
    }


async def _found(
    connection: asyncpg.Connection[asyncpg.Record], load: _Load, times: _Times, known: float
) -> dict[str, float]:
    state = await connection.fetchrow(_FOUND)
    reclaimed = await connection.fetchrow(_RECLAIMED, times.healed)
    assert state is not None
    assert reclaimed is not None
    refused = [one for one in load.asked if known < one.began and one.ended < times.healed]
    sent = times.sent
    normal = (sent["began"] - sent["normal"]) / (times.began - times.normal)
    out = (sent["healed"] - sent["began"]) / (times.healed - times.began)
    return {
        "stuck": state["stuck"],
        "attempts": state["attempts"],
        "early": state["early"],
        "found_out_seconds": known - times.began,
        "refused": len(refused),
        "served": sum(one.status != 503 for one in refused),
        "refused_ms_max": 1000 * max(one.ended - one.began for one in refused),
        "reserved": await connection.fetchval(_RESERVED_BETWEEN, known + 1, times.healed),
        "requests_normal": normal,
        "requests_out": out,
        "requests_ratio": out / normal,
        "resume_seconds": reclaimed["first"] - times.healed,
        "fetch_seconds": _fetched_again(load, times),
        "per_second": reclaimed["reclaimed"] / (reclaimed["last"] - reclaimed["first"]),
    }


async def _run(place: Place) -> Run:
    home = await place.home()
    home.folder.mkdir(exist_ok=True)
    with closing(S3Bucket(place.folder / "rgw")) as bucket:
        settings, problems = environment.read(S3Settings, bucket.settings())
        assert settings is not None, problems
        outage = QUICK if place.quick else Outage()
        found = await measure(place, replace(home, s3=settings), bucket, outage)
    await place.drop(home)
    return found


def _none(label: str, **more: Any) -> Figure:
    return Figure(label=label, at_most=0, worst=True, **more)


OUTAGE = Benchmark(
    name="outage",
    about="a store outage with 60,000 leases due, under fetches and pushes, on Ceph's S3 gateway",
    figures={
        "leases": Figure(label="leases due as it begins"),
        "stuck": _none("stuck"),
        "attempts": _none("attempts counted, the most of one lease"),
        "early": _none("deleted early"),
        "found_out_seconds": Figure(label="from its beginning until it is known", unit="s"),
        "refused": Figure(label="fetches and pushes while it is known"),
        "served": _none("of them not refused with 503"),
        "refused_ms_max": Figure(label="the slowest refusal", unit="ms", at_most=1000, worst=True),
        "reserved": _none("leases reserved while it is known"),
        "requests_normal": Figure(label="requests to the store before it", unit="/s"),
        "requests_out": Figure(label="requests to the store during it", unit="/s"),
        "requests_ratio": Figure(
            label="requests during it, to those before", unit="times", at_most=2, worst=True
        ),
        "resume_seconds": Figure(
            label="from its end to the first record", unit="s", at_most=10, worst=True
        ),
        "fetch_seconds": Figure(
            label="from its end to the first pack fetched", unit="s", at_most=10, worst=True
        ),
        "per_second": Figure(label="deleted and recorded after it", unit="/s"),
        "control_per_second": Figure(label="control: a bare loop of deletions", unit="/s"),
        "ratio": Figure(label="ours to the control's", unit="times", at_least=0.6),
    },
    run=_run,
)
