"""`GET|HEAD|PUT /blobs/{key}`: the local store's signed URLs, served by the gateway.

The URL is the whole permission; nothing about a blob is told before its signature holds. What was
opened in time is served to its end, even if the URL expires or the blob is deleted meanwhile: the
promise concerns new requests, and a download is not torn. A deleted blob's disk space returns once
its last reader is through.

Starlette's FileResponse is not used: it opens the file after it has sent the status (a blob that
vanishes in between becomes a torn 200), answers 400 to ranges that are to be ignored, knows no
If-None-Match, and writes errors in a form of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.errors import BodyTooSlow, TooLarge
from gateway.middleware import declared_bytes
from gateway.routes.ranged import ranged_response
from gateway.storage.local import LocalStore


def blob_routes(
    store: LocalStore, *, upload_bytes_max: int, upload_seconds_max: float
) -> list[Route]:
    """The routes that serve this store's signed URLs, and take what is put there."""

    async def blob(request: Request) -> Response:
        # HEAD tells less than GET does, so a URL signed for GET is good for both.
        opened = await store.open_blob(_signed_key(store, request, "GET"))
        return await ranged_response(
            request, opened, etag=opened.etag, cache_control="private, no-store"
        )

    async def put_blob(request: Request) -> Response:
        key = _signed_key(store, request, "PUT")
        if declared_bytes(request.headers) > upload_bytes_max:
            raise _too_large(upload_bytes_max)
        try:
            async with asyncio.timeout(upload_seconds_max):
                await store.put(key, _bounded(request.stream(), upload_bytes_max))
        except TimeoutError as error:
            raise BodyTooSlow from error
        return Response(headers={"Cache-Control": "no-store"})

    address = "/blobs/{key:path}"
    return [
        Route(address, blob, methods=["GET", "HEAD"], name="blob"),
        Route(address, put_blob, methods=["PUT"], name="put_blob"),
    ]


async def _bounded(body: AsyncIterator[bytes], bytes_max: int) -> AsyncIterator[bytes]:
    """A body as it comes; it is stored whole or, when it grows too long, not at all."""
    held = 0
    async for chunk in body:
        held += len(chunk)
        if held > bytes_max:
            raise _too_large(bytes_max)
        yield chunk


def _too_large(bytes_max: int) -> TooLarge:
    return TooLarge(f"An upload may have {bytes_max:,} bytes.")


def _signed_key(store: LocalStore, request: Request, method: str) -> str:
    """Whose blob it is. Errors: as `LocalStore.verify`."""
    key: str = request.path_params["key"]
    store.verify(
        method, key, expires=_only(request, "expires"), signature=_only(request, "signature")
    )
    return key


def _only(request: Request, name: str) -> str:
    """This query parameter, empty (which no signature fits) unless it stands there once."""
    values = request.query_params.getlist(name)
    return values[0] if len(values) == 1 else ""
