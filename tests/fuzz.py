"""Mutated requests to every route, in process, on a real PostgreSQL and the local store.

    python -m tests.fuzz --seed 1 --count 100000 --json fuzz.json

Whatever is sent: no 5xx, no answer that hangs, nothing of another repo lost, the invariants hold,
and memory grows by at most four times the body limit. Request `n` of a seed is made from both
alone, so a failure names what makes it again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgpack
from starlette.applications import Starlette

from gateway.app import create_app
from gateway.auth import Scope
from gateway.embedded_postgres import EmbeddedPostgres
from gateway.logs import configure
from gateway.service import Service
from gateway.wire.limits import WireLimits
from tests.databases import cloned, make_template
from tests.factories import History, make_history
from tests.integration.gateways import settings_for
from tests.invariants import check_invariants, durable_snapshot

ANSWER_SECONDS_MAX = 60.0
_FAILURES_KEPT = 20
_STEP_BYTES = 32 << 20  # Who makes the process's peak grow by so much is told.
_REPO, _KEPT = "o/fuzzed", "o/kept"
_LARGE_EVERY = 5_000
MEMORY_FACTOR_MAX = 4
# What a request may gain by having one part of it many times over. Nobody means a body of half a
# gigabyte, made of such a part of such a part; it would be this process that holds it.
_REPEATED_BYTES_MAX = 8 << 20

_TEXTS = (
    *("", "\0", "a\0b", "../../etc/passwd", "/", ".", "..", "-x", "x" * 300, "x" * 70_000),
    *("ä ö", "\u202e", "\ud800", "😀" * 64, "%00", "'; DROP TABLE repos; --", "a" * 64, "F" * 64),
    *("sha256:", "sha256:" + "a" * 64, "sha256:" + "A" * 64, "0" * 64, "g" * 64, "NaN", "true"),
    *("2026-01-01T00:00:00+00:00", "9999-12-31T23:59:59.999999Z", "0001-01-01T00:00:00+23:59"),
)
_NUMBERS = (
    *(0, 1, -1, 2**31, 2**53, 2**63 - 1, -(2**63), 2**64 - 1),
    *(0.5, 1e308, 5e-324, float("nan"), float("inf"), float("-inf")),
)
_OTHERS: tuple[Any, ...] = (
    None,
    True,
    False,
    b"",
    b"\0" * 64,
    b"\xff" * 71,
    [],
    {},
    [[]],
    {"": {}},
    [None] * 100,
)
_HEADERS = (
    *(("content-type", one) for one in ("application/json", "text/plain", "", "a/b; c=\xff")),
    *(("content-type", one) for one in ("application/x-msgpack", "multipart/form-data")),
    *(("accept", one) for one in ("application/json", "text/event-stream", "*/*;q=0", ",;=,", "")),
    *(("authorization", one) for one in ("Bearer", "Bearer \xff", "Basic YTpi", "bearer mpk_")),
    *(("range", one) for one in ("bytes=0-", "bytes=-1", "bytes=5-2", "bytes=0-0,2-3", "x=1")),
    *(("range", "bytes=" + "9" * 5000 + "-"), ("if-range", "x"), ("if-none-match", "*")),
    *(("content-length", one) for one in ("-1", "1e9", "9" * 5000, "\xb2", "0")),
    *(("last-event-id", one) for one in ("-1", "9" * 40, "x", "\xb2")),
    *(("x-request-id", one) for one in ("a b", "x" * 1000, "ok-1")),
)
_QUERIES = (
    *("limit=-1", "limit=x", "limit=99999999999999999999", "after=-1", "after=9" + "9" * 30),
    *("state=x", "cursor=%00", "repo_id=%00", "repo_id=a&repo_id=b", "%", "a=b;c", "=&=&"),
    *("x" * 9000, "state=active&state=active"),
    *("expires=1&signature=a", "expires=%b2&signature=x", "channel=%00", "include_drafts=1"),
    *("since=x", "since=9999-12-31T23:59:59Z", "until=%F0%9F%98%80", "type=%00", "stream=%00"),
)  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Sent:
    """A request as it goes to the app."""

    method: str
    path: str
    body: bytes = b""
    query: str = ""
    headers: list[tuple[str, str]] = field(default_factory=list)
    pieces: int = 1


@dataclass(slots=True, kw_only=True)
class Found:
    """What a run came to; it is good when `failures` is empty."""

    seed: int
    count: int
    seconds: float = 0.0
    statuses: dict[str, int] = field(default_factory=dict)
    slowest_ms: float = 0.0
    memory_grown_bytes: int = 0
    memory_bytes_max: int = 0
    memory_steps: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


class Fuzzer:
    """Makes requests from a history that is there, and spoils them."""

    def __init__(self, history: History, *, repo_id: str, push: str, admin: str) -> None:
        self._history = history
        self._repo_id = repo_id
        self._push, self._admin = push, admin
        self._ids = [*history.contents, *history.commits]

    def request(self, chance: random.Random) -> Sent:
        """A valid request, changed in some ways; now and then in none."""
        method, path, body, query = self._valid(chance)
        token = self._admin if path.startswith("/v1") else self._push
        headers = [("authorization", f"Bearer {token}"), ("accept", "application/x-msgpack")]
        as_json = chance.random() < 0.2
        for _ in range(chance.choice((0, 1, 1, 1, 2, 4))):
            body = self._spoiled(chance, body)
        data = b"" if body is None else _encoded(body, as_json=as_json)
        if body is not None:
            kind = "application/json" if as_json else "application/x-msgpack"
            headers.append(("content-type", kind))
        if data and chance.random() < 0.25:
            data = _torn(chance, data)
        if chance.random() < 0.15:
            headers.append(chance.choice(_HEADERS))
        if chance.random() < 0.05:
            headers = [one for one in headers if one[0] != "authorization"]
        if chance.random() < 0.1:
            query = chance.choice(_QUERIES)
        if chance.random() < 0.05:
            path = self._strange(chance, path)
        if chance.random() < 0.02:
            method = chance.choice(
                ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "X")
            )
        pieces = chance.choice((1, 1, 1, 2, 7))
        return Sent(
            method=method, path=path, body=data, query=query, headers=headers, pieces=pieces
        )

    def large(self, chance: random.Random, bytes_max: int) -> Sent:
        """A body as large as may be, of what takes most room once it is decoded."""
        unit = chance.choice((b"\x80", b"\x90", b"\xc0", b"\xa0", b"\xa1a", b"\x81\xa0\x80"))
        names = {"fetch": b"want", "push/objects": b"objects", "releases": b"x", "push": b"bundle"}
        path, name = chance.choice(list(names.items()))
        count = (bytes_max - 16) // len(unit)
        body = b"\x81" + bytes([0xA0 + len(name)]) + name + b"\xdd" + count.to_bytes(4, "big")
        headers = [
            ("authorization", f"Bearer {self._push}"),
            ("content-type", "application/x-msgpack"),
        ]
        return Sent(
            method="POST", path=f"/{_REPO}/{path}", body=body + unit * count, headers=headers
        )

    def _valid(self, chance: random.Random) -> tuple[str, str, Any, str]:
        history, one = self._history, chance.choice(self._ids)
        commits = chance.sample(list(history.commits), chance.randint(1, 3))
        objects = chance.sample(list(history.contents), chance.randint(1, 3))
        wish = {"want": commits, "have": [one], "ttl_seconds": chance.choice((1, 1.5, 30, 300))}
        bundle = history.bundle(with_objects=chance.random() < 0.5)
        tag = {"tag_id": one, "commit_id": commits[0], "tag": "v1", "created_at": None}
        release = {"tag": "v1", "commit_id": commits[0], "channel": "stable", "is_draft": False}
        at = f"/{_REPO}"
        stored = history.objects(objects)
        asked = {"object_ids": objects, "direction": chance.choice(("put", "get"))}
        found: list[tuple[str, str, Any, str]] = [
            ("GET", f"{at}/refs", None, ""),
            ("POST", f"{at}/fetch", wish, ""),
            ("POST", f"{at}/fetch/mpack", wish, ""),
            ("POST", f"{at}/negotiate", {"want": commits, "have": [one]}, ""),
            ("POST", f"{at}/filter-objects", {"object_ids": [*objects, "f" * 64]}, ""),
            ("POST", f"{at}/presign", asked, ""),
            ("POST", f"{at}/push/objects", {"objects": stored}, ""),
            ("POST", f"{at}/push", {"bundle": bundle, "branch": "main", "force": True}, ""),
            ("POST", f"{at}/push", {"bundle": bundle, "branch": "b", "force": False}, ""),
            ("POST", f"{at}/tags", {"tags": [tag]}, ""),
            ("GET", f"{at}/releases", None, "channel=stable"),
            ("POST", f"{at}/releases", release, ""),
            ("DELETE", f"{at}/releases/v1", None, ""),
            ("DELETE", f"{at}/branches/b", None, ""),
            ("GET", f"/o/{objects[0]}", None, f"repo_id={self._repo_id}"),
            ("GET", "/v1/leases", None, "limit=5"),
            ("GET", f"/v1/leases/{one}", None, ""),
            ("GET", "/v1/events", None, "limit=5"),
            ("PUT", f"/blobs/transient/a/{one}", {"x": one}, "expires=1&signature=x"),
            ("GET", f"/blobs/segments/{one}", None, "expires=99999999999&signature=x"),
            ("GET", chance.choice(("/livez", "/readyz", "/metrics")), None, ""),
        ]
        return chance.choice(found)

    def _spoiled(self, chance: random.Random, value: Any) -> Any:
        """The value with one of its parts replaced, removed, doubled, nested or renamed."""
        if isinstance(value, dict) and value and chance.random() < 0.85:
            key = chance.choice(list(value))
            changed = dict(value)
            match chance.randrange(8):
                case 0:
                    del changed[key]
                case 1:
                    changed[chance.choice(_TEXTS[:8])] = changed.pop(key)
                case _:
                    changed[key] = self._spoiled(chance, value[key])
            return changed
        if isinstance(value, list) and value and chance.random() < 0.85:
            place, changed_list = chance.randrange(len(value)), list(value)
            match chance.randrange(6):
                case 0:
                    del changed_list[place]
                case 1:
                    changed_list += _repeated(value[place], chance.choice((1, 50)))
                case _:
                    changed_list[place] = self._spoiled(chance, value[place])
            return changed_list
        return None if value is None and chance.random() < 0.7 else self._hostile(chance, value)

    def _hostile(self, chance: random.Random, value: Any) -> Any:
        match chance.randrange(7):
            case 0:
                return chance.choice(_NUMBERS)
            case 1:
                return chance.choice(_OTHERS)
            case 2:
                return chance.choice(self._ids)
            case 3:
                nested: Any = value
                for _ in range(chance.choice((2, 40, 200))):
                    nested = [nested] if chance.random() < 0.5 else {"a": nested}
                return nested
            case 4 if isinstance(value, str) and value:
                place = chance.randrange(len(value))
                return value[:place] + value[place + 1 :]
            case 5 if isinstance(value, bytes) and value:
                return _torn(chance, value)
            case _:
                return chance.choice(_TEXTS)

    def _strange(self, chance: random.Random, path: str) -> str:
        parts = path.split("/")
        parts[chance.randrange(len(parts))] = chance.choice(_TEXTS)
        return "/" + "/".join(parts).lstrip("/")


def _encoded(body: Any, *, as_json: bool) -> bytes:
    if as_json:
        return json.dumps(body, default=lambda one: one.hex(), skipkeys=True).encode()
    try:
        return bytes(msgpack.packb(body, unicode_errors="surrogatepass"))
    except (ValueError, OverflowError):
        return b"\xc1"


def _repeated(value: Any, times: int) -> list[Any]:
    return [value] * times if _about_bytes(value) * times <= _REPEATED_BYTES_MAX else []


def _about_bytes(value: Any) -> int:
    """What a value takes, encoded; without recursion, because some are nested deeply."""
    about, waiting = 0, [value]
    while waiting:
        one = waiting.pop()
        about += 1
        if isinstance(one, str | bytes):
            about += len(one)
        elif isinstance(one, dict):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list):
            waiting += one
    return about


def _torn(chance: random.Random, data: bytes) -> bytes:
    """Bytes flipped, cut off, added, or a length that promises the moon."""
    place = chance.randrange(len(data))
    match chance.randrange(5):
        case 0:
            return data[:place]
        case 1:
            return data[:place] + bytes([chance.randrange(256)]) + data[place + 1 :]
        case 2:
            return data[:place] + chance.randbytes(chance.randint(1, 8)) + data[place:]
        case 3:
            lie = chance.choice((b"\xdd", b"\xdf", b"\xc6", b"\xdb", b"\xc9"))
            return data[:place] + lie + b"\xff\xff\xff\xfe" + data[place:]
        case _:
            return data + chance.choice((b"\0", data, b"\x91" * 5000))


async def sent_to(app: Starlette, request: Sent) -> int:
    """Send it; the status. Errors: TimeoutError, and whatever leaves the app."""
    step = max(1, -(-len(request.body) // request.pieces))
    pieces = [request.body[at : at + step] for at in range(0, len(request.body), step)] or [b""]
    status = 0

    async def receive() -> dict[str, Any]:
        if not pieces:
            return {"type": "http.disconnect"}
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    async def send(message: Any) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]

    scope = {
        "type": "http",
        # From 2.4 on an answer goes on although `receive` has said that the caller left.
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": request.path,
        "raw_path": request.path.encode(errors="replace"),
        "query_string": request.query.encode(),
        "root_path": "",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in request.headers],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
    }
    async with asyncio.timeout(ANSWER_SECONDS_MAX):
        await app(scope, receive, send)
    return status


def fuzzed_history() -> History:
    """What valid requests are made from."""
    history = make_history(7, commits=8, files=4, size_bytes=64)
    history.commit({"large": history.content(bytes(100_000))}, parents=[history.head])
    return history


@asynccontextmanager
async def target(database_url: str, folder: Path) -> AsyncIterator[tuple[Starlette, Fuzzer]]:
    """An app with a repo to fuzz and one to keep, and what fuzzes it."""
    app = create_app(settings_for(database_url, folder))
    async with app.router.lifespan_context(app):
        service: Service = app.state.service
        history = fuzzed_history()

        async def token(*scopes: Scope, repos: list[str] | None = None) -> str:
            return (await service.tokens.create(name="fuzz", scopes=scopes, repos=repos)).secret

        owner = await token(Scope.PUSH)
        body = {"bundle": history.bundle(with_objects=True), "branch": "main", "force": False}
        for name in (_KEPT, _REPO):
            headers = [("authorization", f"Bearer {owner}")]
            push = Sent(
                method="POST", path=f"/{name}/push", body=msgpack.packb(body), headers=headers
            )
            assert await sent_to(app, push) == 200
        repo = await service.repos.find(owner="o", slug="fuzzed")
        assert repo is not None
        yield (
            app,
            Fuzzer(
                history,
                repo_id=repo.repo_id,
                push=await token(Scope.PUSH, repos=[_REPO]),
                admin=await token(Scope.ADMIN),
            ),
        )


_KEPT_ROWS = """
SELECT 'branch' AS kind, name || head_commit_id AS what FROM branches JOIN repos USING (repo_id)
 WHERE slug = 'kept'
UNION ALL SELECT 'commit', commit_id FROM commit_refs JOIN repos USING (repo_id) WHERE slug = 'kept'
UNION ALL SELECT 'object', object_id FROM object_refs JOIN repos USING (repo_id) WHERE slug = 'kept'
UNION ALL SELECT 'snapshot', snapshot_id FROM snapshot_refs JOIN repos USING (repo_id)
 WHERE slug = 'kept' ORDER BY 1, 2"""


async def fuzz(
    database_url: str,
    folder: Path,
    *,
    seed: int,
    count: int,
    large_every: int = _LARGE_EVERY,
    tell: Callable[[int], Awaitable[None]] | None = None,
) -> Found:
    """Send `count` requests, and look at what they left behind."""
    found = Found(seed=seed, count=count)
    limits = WireLimits()
    found.memory_bytes_max = MEMORY_FACTOR_MAX * limits.body_bytes_max
    statuses: Counter[str] = Counter()
    async with target(database_url, folder) as (app, fuzzer):
        service: Service = app.state.service
        durable = await durable_snapshot(service.store)
        kept = [tuple(row) for row in await service.database.fetch(_KEPT_ROWS)]
        memory_before, began = _peak_bytes(), time.monotonic()
        peak = memory_before
        for number in range(count):
            chance = random.Random(f"{seed}/{number}")
            if number % large_every == large_every - 1:
                request = fuzzer.large(chance, limits.body_bytes_max)
            else:
                request = fuzzer.request(chance)
            asked = time.monotonic()
            try:
                status = await sent_to(app, request)
                problem = f"status {status}" if status >= 500 or not status else None
            except Exception as error:  # noqa: BLE001  that is what is looked for
                status, problem = 599, f"{type(error).__name__}: {error}"
            found.slowest_ms = max(found.slowest_ms, (time.monotonic() - asked) * 1000)
            statuses[str(status)] += 1
            if (grown := _peak_bytes() - peak) > _STEP_BYTES:
                peak += grown
                step = f"{seed}/{number}: +{grown >> 20} MiB: {_shown(request)}"
                found.memory_steps = [*found.memory_steps, step][-_FAILURES_KEPT:]
            if problem and len(found.failures) < _FAILURES_KEPT:
                found.failures.append(f"{seed}/{number}: {problem}: {_shown(request)}")
            if tell is not None and number % 1000 == 999:
                await tell(number + 1)
        found.seconds = time.monotonic() - began
        found.memory_grown_bytes = _peak_bytes() - memory_before
        if found.memory_grown_bytes > found.memory_bytes_max:
            found.failures.append(f"memory grew by {found.memory_grown_bytes:,} bytes")
        if kept != [tuple(row) for row in await service.database.fetch(_KEPT_ROWS)]:
            found.failures.append("the other repo has changed")
        try:
            await check_invariants(service.database, service.store, at_rest=False, durable=durable)
        except AssertionError as error:
            found.failures.append(str(error)[:2000])
    found.statuses = dict(sorted(statuses.items()))
    return found


def _shown(request: Sent) -> str:
    headers = [one for one in request.headers if one[0] != "authorization"]
    return (
        f"{request.method} {request.path[:200]!r} ?{request.query[:200]} {headers!r:.300}"
        f" {request.body[:400]!r}"
    )


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--json", type=Path, help="write what was found there")
    told = parser.parse_args()
    configure(log_format="json", level="error")
    folder = Path(tempfile.mkdtemp(prefix="mpack-gateway-fuzz-"))
    folder.chmod(0o711)
    server = EmbeddedPostgres(folder / "postgres", settings={"fsync": "off"})

    async def tell(number: int) -> None:
        sys.stderr.write(f"{number:,} of {told.count:,}\n")

    try:
        server.start()
        make_template(server)
        with cloned(server) as url:
            running = fuzz(url, folder / "data", seed=told.seed, count=told.count, tell=tell)
            found = asyncio.run(running)
    finally:
        server.remove()
        shutil.rmtree(folder)
    text = json.dumps(asdict(found), indent=2)
    if told.json is not None:
        told.json.write_text(text + "\n")
    sys.stdout.write(text + "\n")
    return 1 if found.failures else 0


if __name__ == "__main__":
    sys.exit(main())
