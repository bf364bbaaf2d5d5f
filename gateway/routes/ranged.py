"""The answer with an open blob's bytes: whole, one range of them, its head, or "you have it"."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from gateway.routes.byte_ranges import ByteRange, matches_any, parse_range, range_still_valid

_MEDIA_TYPE = "application/octet-stream"
# So much is sent without looking whether the caller is still there: reading what is left of it for
# nobody costs less than the task that looks (a third of what the answer costs).
_UNWATCHED_BYTES_MAX = 4 * 1024 * 1024


class OpenContent(Protocol):
    """Bytes that can be read by ranges until they are closed."""

    size_bytes: int

    def chunks(self, start: int, stop: int) -> AsyncIterator[bytes | memoryview]:
        """The bytes of `[start, stop)`, in order."""
        ...

    async def close(self) -> None:
        """Free what reading took."""
        ...


class _RangedResponse(StreamingResponse):
    """Streams part of open content, and closes it however the request ends.

    A generator's own `finally` would not do: it never runs for a caller who leaves before the first
    chunk.
    """

    def __init__(
        self, content: OpenContent, part: ByteRange, *, status_code: int, headers: dict[str, str]
    ) -> None:
        self._size_bytes = part.stop - part.start
        super().__init__(
            content.chunks(part.start, part.stop),
            status_code=status_code,
            headers=headers | {"Content-Length": str(self._size_bytes)},
            media_type=_MEDIA_TYPE,
        )
        self._content = content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if self._size_bytes > _UNWATCHED_BYTES_MAX:
                await super().__call__(scope, receive, send)
            else:
                await self._sent(send)
        finally:
            await self._content.close()

    async def _sent(self, send: Send) -> None:
        try:
            await self.stream_response(send)
        except OSError as error:  # What the specification lets a server say of a lost connection.
            raise ClientDisconnect from error


async def ranged_response(
    request: Request, content: OpenContent, *, etag: str, cache_control: str
) -> Response:
    """The answer to GET or HEAD; it closes the content.

    Errors: RangeUnsatisfiable.
    """
    headers = {
        "Accept-Ranges": "bytes",
        "Cache-Control": cache_control,
        "ETag": etag,
        "X-Content-Type-Options": "nosniff",
    }
    try:
        response = _response(request, content, etag, headers)
    except BaseException:
        await content.close()
        raise
    if not isinstance(response, _RangedResponse):
        await content.close()
    return response


def _response(
    request: Request, content: OpenContent, etag: str, headers: dict[str, str]
) -> Response:
    if matches_any(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    size_bytes = content.size_bytes
    if request.method == "HEAD":  # The RFC defines ranges for GET alone.
        headers["Content-Length"] = str(size_bytes)
        return Response(headers=headers, media_type=_MEDIA_TYPE)
    part = None
    if range_still_valid(request.headers.get("if-range"), etag):
        part = parse_range(request.headers.get("range"), size_bytes)
    if part is None:
        whole = ByteRange(0, size_bytes)
        return _RangedResponse(content, whole, status_code=200, headers=headers)
    headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{size_bytes}"
    return _RangedResponse(content, part, status_code=206, headers=headers)
