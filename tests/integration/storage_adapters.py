"""The storage adapters that must pass the one conformance suite.

A new adapter joins with one entry in `ADAPTERS`: a context manager that gives an empty store, and
what it can do beyond the required part. Where it needs a server that is not there, it skips.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse

from gateway.errors import answer_for
from gateway.routes.blobs import blob_routes
from gateway.storage.local import LocalStore
from gateway.storage.s3 import S3Store
from leases.clock import SystemClock
from leases.errors import Failure
from tests.fakes import MemoryStore
from tests.loopback import bound_socket, served, url_of
from tests.rgw import new_bucket, s3_settings

UPLOAD_BYTES_MAX = 1_000_000


class Ability(StrEnum):
    """What a store may do beyond the required part."""

    DELETES_MANY = "delete_many"
    LISTS = "list"
    HEADS = "head"
    ABORTS = "abort_uploads"
    SERVES_URLS = "urls that HTTP clients can open"
    TELLS_ALREADY_GONE = "delete tells whether there was a blob"


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    name: str
    open: Callable[[Path], AbstractAsyncContextManager[Any]]
    abilities: frozenset[Ability] = frozenset()


def blob_app(store: LocalStore) -> Starlette:
    """The blob routes alone, with the gateway's rendering of errors."""

    async def render(_request: Request, error: Exception) -> JSONResponse:
        answer = answer_for(error, request_id="test")
        return JSONResponse(answer.body, status_code=answer.status, headers=answer.headers)

    return Starlette(
        routes=blob_routes(store, upload_bytes_max=UPLOAD_BYTES_MAX, upload_seconds_max=60),
        exception_handlers={Failure: render},
    )


@asynccontextmanager
async def open_local(folder: Path) -> AsyncIterator[LocalStore]:
    listening = bound_socket()
    root = folder / "blobs"
    async with LocalStore(root, public_url=url_of(listening), clock=SystemClock().now) as store:
        with served(blob_app(store), listening):
            yield store


@asynccontextmanager
async def open_memory(_folder: Path) -> AsyncIterator[MemoryStore]:
    yield MemoryStore()


@asynccontextmanager
async def open_s3(_folder: Path) -> AsyncIterator[S3Store]:
    async with S3Store(s3_settings(new_bucket())) as store:
        yield store


ADAPTERS = (
    Adapter(name="local", open=open_local, abilities=frozenset(Ability)),
    Adapter(name="memory", open=open_memory),
    # S3 answers success for a key that was not there.
    Adapter(name="s3", open=open_s3, abilities=frozenset(Ability) - {Ability.TELLS_ALREADY_GONE}),
)
