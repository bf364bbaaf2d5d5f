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
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gateway.errors import BodyTooSlow, TooLarge
from gateway.routes.byte_ranges import ByteRange, matches_any, parse_range, range_still_valid
from gateway.storage.local import LocalStore, OpenBlob
from leases.errors import StoreUnavailable

CHUNK_BYTES = 256 * 1024  # What one download holds in memory; 64 KiB costs four times the switches.


def blob_routes(
    store: LocalStore, *, upload_bytes_max: int, upload_seconds_max: float
) -> list[Route]:
    """The routes that serve this store's signed URLs, and take what is put there."""

    async def blob(request: Request) -> Response:
        key: str = request.path_params["key"]
        # HEAD tells less than GET does, so a URL signed for GET is good for both.
        store.verify(
            "GET",
            key,
            expires=_only(request, "expires"),
            signature=_only(request, "signature"),
        )
        opened = await store.open_blob(key)
        try:
            response = _response(request, opened)
        except BaseException:
            opened.close()
            raise
        if not isinstance(response, BlobResponse):
            opened.close()
        return response

    async def put_blob(request: Request) -> Response:
        key: str = request.path_params["key"]
        store.verify(
            "PUT",
            key,
            expires=_only(request, "expires"),
            signature=_only(request, "signature"),
        )
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > upload_bytes_max:
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


class BlobResponse(StreamingResponse):
    """Streams part of an open blob, and closes it however the request ends."""

    def __init__(
        self, blob: OpenBlob, part: ByteRange, *, status_code: int, headers: dict[str, str]
    ) -> None:
        super().__init__(_chunks(blob, part), status_code=status_code, headers=headers)
        self._blob = blob

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._blob.close()


def _response(request: Request, blob: OpenBlob) -> Response:
    headers = {
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-store",
        "Content-Type": "application/octet-stream",
        "ETag": blob.etag,
        "X-Content-Type-Options": "nosniff",
    }
    if matches_any(request.headers.get("if-none-match"), blob.etag):
        del headers["Content-Type"]
        return Response(status_code=304, headers=headers)
    if request.method == "HEAD":  # The RFC defines ranges for GET alone.
        return Response(headers=headers | {"Content-Length": str(blob.size_bytes)})
    part = None
    if range_still_valid(request.headers.get("if-range"), blob.etag):
        part = parse_range(request.headers.get("range"), blob.size_bytes)
    if part is None:
        headers["Content-Length"] = str(blob.size_bytes)
        return BlobResponse(blob, ByteRange(0, blob.size_bytes), status_code=200, headers=headers)
    headers["Content-Length"] = str(part.stop - part.start)
    headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{blob.size_bytes}"
    return BlobResponse(blob, part, status_code=206, headers=headers)


async def _chunks(blob: OpenBlob, part: ByteRange) -> AsyncIterator[bytes]:
    start = part.start
    while start < part.stop:
        chunk = await blob.read(start, min(start + CHUNK_BYTES, part.stop))
        if not chunk:
            raise StoreUnavailable("A blob became shorter while it was read.")
        start += len(chunk)
        yield chunk


def _only(request: Request, name: str) -> str:
    """This query parameter, empty (which no signature fits) unless it stands there once."""
    values = request.query_params.getlist(name)
    return values[0] if len(values) == 1 else ""
