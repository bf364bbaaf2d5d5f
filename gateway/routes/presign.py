"""`POST /{owner}/{repo}/presign`: URLs by which single objects come and go past the gateway."""

from __future__ import annotations

from functools import partial

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.errors import MISSING_SHOWN_MAX, UnknownObject
from gateway.packs.known import known_objects
from gateway.packs.transaction import reading
from gateway.packs.uploads import Presigned
from gateway.routes.access import Access, body_of, caller_of
from gateway.service import Service
from gateway.wire.ids import bare_all
from gateway.wire.messages import PresignRequest
from gateway.wire.render import render


def presign_routes(access: Access, service: Service) -> list[Route]:
    """The route that hands out URLs of single objects."""

    async def presign(request: Request) -> Response:
        # Who asks decides before the body is read; what is asked decides which of the two it is.
        await access.readable_or_new(request)
        asked = await body_of(request, PresignRequest, service.settings.wire)
        written = dict(zip(asked.object_ids, bare_all(asked.object_ids), strict=True))
        ids = list(dict.fromkeys(written.values()))
        found = await (
            _put(request, ids) if asked.direction == "put" else _get(request, asked, ids)
        )
        urls = {told: found.urls[one] for told, one in written.items() if one in found.urls}
        inline = set(found.inline)
        rest = [told for told, one in written.items() if one in inline]
        return render(request, {"presigned": urls, "inline": rest})

    async def _put(request: Request, ids: list[str]) -> Presigned:
        principal, repo = await access.pushable(request)
        return await service.uploads.presign(
            service.engine, repo.repo_id, ids, caller=caller_of(request, principal)
        )

    async def _get(request: Request, asked: PresignRequest, ids: list[str]) -> Presigned:
        principal, repo = await access.readable(request)
        open_reader = partial(reading, service.database)
        async with open_reader() as reader:
            held = await known_objects(reader, repo.repo_id, ids)
        if unknown := [one for one in ids if one not in held]:
            raise UnknownObject(missing=unknown[:MISSING_SHOWN_MAX])
        return await service.packs.object_urls.presign(
            open_reader,
            repo.repo_id,
            ids,
            ttl_seconds=asked.ttl_seconds,
            ttl_min_seconds=service.settings.lease.ttl_min_http_seconds,
            caller=caller_of(request, principal),
        )

    return [Route("/{owner}/{repo}/presign", presign, methods=["POST"], name="presign")]
