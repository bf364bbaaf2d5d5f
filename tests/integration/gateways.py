"""Gateways for tests: a real server on a loopback port, in the test's own loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import msgpack
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Secret

from gateway.app import create_app
from gateway.auth import Scope
from gateway.cli.serve import listening_socket
from gateway.draining import DrainingServer
from gateway.service import Service
from gateway.settings import Settings
from gateway.slow_clients import shedding_protocol
from leases.lessor import Caller
from tests.factories import History
from tests.secrecy import check
from tests.stores import s3_of

MSGPACK = "application/x-msgpack"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A status, its headers, and the decoded body."""

    status: int
    headers: Mapping[str, str]
    body: dict[str, Any]

    def __post_init__(self) -> None:
        if self.status >= 400:
            check(f"{self.body} {dict(self.headers)}", where="a refusal's words")


@dataclass(slots=True, kw_only=True)
class LiveGateway:
    """A gateway that serves."""

    url: str
    app: Starlette
    http: httpx2.AsyncClient
    port: int  # Where it listens; its URL may lead there through a proxy.

    @property
    def service(self) -> Service:
        """Its inside."""
        service: Service = self.app.state.service
        return service

    async def token(self, *scopes: str, repos: Sequence[str] | None = None) -> str:
        """A new token's secret."""
        issued = await self.service.tokens.create(
            name="test", scopes=[Scope(scope) for scope in scopes], repos=repos
        )
        return issued.secret

    async def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One call as the Muse client makes it; `body` may be bytes that are no msgpack."""
        sent = {"Accept": f"{MSGPACK}, application/json", **(headers or {})}
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        content = None
        if body is not None:
            content = body if isinstance(body, bytes) else msgpack.packb(body)
            sent.setdefault("Content-Type", MSGPACK)
        response = await self.http.request(method, self.url + path, content=content, headers=sent)
        return Answer(
            status=response.status_code,
            headers=response.headers,
            body=decoded(response.headers.get("content-type", ""), response.content),
        )

    async def repo(self, name: str, *, private: bool = False) -> str:
        """A new repo's id."""
        owner, slug = name.split("/")
        made = await self.service.repos.ensure(
            owner=owner,
            slug=slug,
            visibility="private" if private else "public",
            caller=Caller(actor="test"),
        )
        return made.repo_id

    async def push(
        self, name: str, history: History, *, branch: str = "main", token: str, force: bool = False
    ) -> Answer:
        """Push a whole history; its last commit is the head."""
        objects = [{"object_id": key, "content": value} for key, value in history.contents.items()]
        await self.call("POST", f"/{name}/push/objects", {"objects": objects}, token=token)
        request = {"bundle": bundle_of(history), "branch": branch, "force": force}
        return await self.call("POST", f"/{name}/push", request, token=token)


def bundle_of(history: History) -> dict[str, Any]:
    """A history as a push bundle without its objects."""
    return {
        "commits": [commit.record for commit in history.commits.values()],
        "snapshots": [
            {"snapshot_id": commit.snapshot_id, "manifest": dict(commit.manifest)}
            for commit in history.commits.values()
        ],
        "objects": [],
    }


def decoded(content_type: str, content: bytes) -> dict[str, Any]:
    """An answer's body as a map; other bytes under the key `raw`."""
    if "json" in content_type:
        body: Any = httpx2.Response(200, content=content).json()
    elif "msgpack" in content_type:
        body = msgpack.unpackb(content, strict_map_key=False)
    else:
        body = {"raw": content}
    assert isinstance(body, dict)
    return body


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with closing(listening_socket("127.0.0.1")) as listening:
        port: int = listening.getsockname()[1]
        return port


def settings_for(database_url: str, data_dir: Path, **changes: Any) -> Settings:
    """Settings of a test's gateway, on the store that stands for this folder."""
    return Settings(
        database_url=Secret(database_url),
        data_dir=data_dir,
        s3=s3_of(data_dir),
        log_level="warning",
        **changes,
    )


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[LiveGateway]:
    """Serve these settings on a free port for the time of the block."""
    listening = listening_socket("127.0.0.1")
    port = listening.getsockname()[1]
    url = settings.public_url or f"http://127.0.0.1:{port}"
    app = create_app(replace(settings, public_url=url))
    protocol = shedding_protocol(
        slow_seconds=settings.slow_seconds,
        slow_bytes_per_second=settings.slow_bytes_per_second,
        observer=app.state.service.metrics,
    )
    config = uvicorn.Config(app, http=protocol, lifespan="on", log_config=None, access_log=False)
    server = DrainingServer(config, service=app.state.service)
    started = asyncio.Event()
    startup = server.startup

    async def tell(sockets: Any = None) -> None:
        await startup(sockets)
        started.set()

    server.startup = tell  # type: ignore[method-assign]  # the library has no signal for it
    task = asyncio.create_task(server.serve(sockets=[listening]))
    waiting = asyncio.create_task(started.wait())
    try:
        await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
        assert started.is_set(), "the gateway did not start"
        async with httpx2.AsyncClient(timeout=20, trust_env=False) as http:
            yield LiveGateway(url=url, app=app, http=http, port=port)
    finally:
        waiting.cancel()
        server.should_exit = True
        await task
        listening.close()
