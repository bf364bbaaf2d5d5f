"""`GET|HEAD /o/{object_id}?repo_id=`: one object's bytes, for whoever may read that repo.

An object that the repo does not hold, a repo that is not there and one that the caller may not read
answer alike: the ids of a private repo tell nobody anything.
"""

from __future__ import annotations

from functools import partial

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.errors import RepoMissing, UnknownObject
from gateway.packs.known import known_objects
from gateway.packs.transaction import reading
from gateway.routes.access import Access
from gateway.routes.ranged import ranged_response
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
            repo = await access.readable_by_id(request, repo_ids[0])
        except RepoMissing as error:
            raise UnknownObject from error
        async with open_reader() as reader:
            if not await known_objects(reader, repo.repo_id, [object_id]):
                raise UnknownObject
        return await ranged_response(
            request,
            await service.packs.objects.open(open_reader, repo.repo_id, object_id),
            etag=f'"{object_id}"',
            # Not `public`: a repo may be made private or be deleted, and a proxy would not hear.
            cache_control="private, max-age=31536000, immutable",
        )

    return [Route("/o/{object_id}", an_object, methods=["GET", "HEAD"], name="object")]
