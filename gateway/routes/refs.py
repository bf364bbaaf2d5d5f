"""`GET /{owner}/{repo}/refs` and `POST /{owner}/{repo}/filter-objects`: what a repo holds."""

from __future__ import annotations

from functools import partial

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.off_loop import off_loop
from gateway.packs.known import known_objects
from gateway.packs.repos import DEFAULT_BRANCH, DOMAIN, default_branch
from gateway.packs.transaction import reading
from gateway.routes.access import Access, body_of
from gateway.wire.ids import bare_all
from gateway.wire.limits import WireLimits
from gateway.wire.messages import FilterObjectsRequest
from gateway.wire.render import render
from leases.database import Database

_INLINE_IDS = 10_000  # About 10 ms of work; of a million it is more than a second.


def refs_routes(access: Access, database: Database, limits: WireLimits) -> list[Route]:
    """The routes that tell what is in a repo."""

    async def refs(request: Request) -> Response:
        found = await access.readable_heads_or_new(request)
        if found is None:  # As a repo that was made and never pushed to.
            repo_id = await access.new_id(request)
            nothing = {"domain": DOMAIN, "default_branch": DEFAULT_BRANCH, "branch_heads": {}}
            return render(request, {"repo_id": repo_id, **nothing})
        repo, heads = found
        answer = {
            "repo_id": repo.repo_id,
            "domain": repo.domain,
            "default_branch": default_branch(repo, heads),
            "branch_heads": heads,
        }
        return render(request, answer)

    async def filter_objects(request: Request) -> Response:
        repo = await access.readable_or_new(request)
        asked = await body_of(request, FilterObjectsRequest, limits)
        much = len(asked.object_ids) > _INLINE_IDS
        ids = await off_loop(partial(bare_all, asked.object_ids), much=much)
        held: set[str] = set()
        if repo is not None:
            async with reading(database) as connection:
                held = await known_objects(connection, repo.repo_id, ids)

        def answer() -> Response:
            told = zip(asked.object_ids, ids, strict=True)
            missing = dict.fromkeys(written for written, one in told if one not in held)
            return render(request, {"missing": list(missing)})

        return await off_loop(answer, much=much)

    address = "/{owner}/{repo}"
    return [
        Route(f"{address}/refs", refs, methods=["GET"], name="refs"),
        Route(f"{address}/filter-objects", filter_objects, methods=["POST"], name="filter_objects"),
    ]
