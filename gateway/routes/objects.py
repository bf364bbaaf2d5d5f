"""`GET|HEAD /o/{object_id}?repo_id=`: one object's bytes, for whoever may read that repo.

An object that the repo does not hold, a repo that is not there and one that the caller may not read
answer alike: the ids of a private repo tell nobody anything.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from gateway.errors import RepoMissing, UnknownObject
from gateway.packs.known import known_objects
from gateway.packs.objects import StoredObject
from gateway.packs.transaction import reading
from gateway.routes.access import Access
from gateway.routes.byte_ranges import ByteRange, matches_any, parse_range, range_still_valid
from gateway.service import Service
from gateway.wire.ids import bare
from leases.errors import InvalidRequest


def object_routes(access: Access, service: Service) -> list[Route]:
    """The route that serves single objects."""
    open_reader = partial(reading, service.database)

    async def an_object(request: Request) -> Response:
        object_id = bare(request.path_params["object_id"])
        repo_ids = request.query_params.getlist("repo_id")
        if len(repo_ids) != 1:
            raise InvalidRequest("Say which repository's object it is: ?repo_id=.")
        try:
            _principal, repo = await access.readable_by_id(request, repo_ids[0])
        except RepoMissing as error:
            raise UnknownObject from error
        async with open_reader() as reader:
            if not await known_objects(reader, repo.repo_id, [object_id]):
                raise UnknownObject
        etag = f'"{object_id}"'
        headers = {
            "Accept-Ranges": "bytes",
            # Not `public`: a repo may be made private or be deleted, and a proxy would not hear.
            "Cache-Control": "private, max-age=31536000, immutable",
            "ETag": etag,
            "X-Content-Type-Options": "nosniff",
        }
        if matches_any(request.headers.get("if-none-match"), etag):
            return Response(status_code=304, headers=headers)
        stored = await service.packs.objects.open(open_reader, repo.repo_id, object_id)
        try:
            return await _answer(request, stored, etag=etag, headers=headers)
        except BaseException:
            await stored.close()
            raise

    return [Route("/o/{object_id}", an_object, methods=["GET", "HEAD"], name="object")]


async def _answer(
    request: Request, stored: StoredObject, *, etag: str, headers: dict[str, str]
) -> Response:
    whole = ByteRange(0, stored.size_bytes)
    media_type = "application/octet-stream"
    if request.method == "HEAD":
        await stored.close()
        headers["Content-Length"] = str(stored.size_bytes)
        return Response(headers=headers, media_type=media_type)
    part = None
    if range_still_valid(request.headers.get("if-range"), etag):
        part = parse_range(request.headers.get("range"), stored.size_bytes)
    if part is not None:
        headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{stored.size_bytes}"
    status, part = (200, whole) if part is None else (206, part)
    headers["Content-Length"] = str(part.stop - part.start)
    return StreamingResponse(
        _closing(stored, part), status_code=status, headers=headers, media_type=media_type
    )


async def _closing(stored: StoredObject, part: ByteRange) -> AsyncIterator[bytes]:
    try:
        async for chunk in stored.chunks(part.start, part.stop):
            yield chunk
    finally:
        await stored.close()
