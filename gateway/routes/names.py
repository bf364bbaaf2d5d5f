"""`/{owner}/{repo}/tags`, `/releases` and `/branches`: names that clients give to commits."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.routes.access import Access, body_of, caller_of
from gateway.service import Service
from gateway.wire.body import Record
from gateway.wire.messages import TagsRequest
from gateway.wire.render import encoder, render


def names_routes(access: Access, service: Service) -> list[Route]:
    """The routes that keep tags and releases, and end branches."""
    limits, names = service.settings.wire, service.names

    async def tags(request: Request) -> Response:
        principal, repo = await access.writable(request)
        sent = await body_of(request, TagsRequest, limits)
        caller = caller_of(request, principal)
        stored = await names.store_tags(repo.repo_id, sent.tags, caller)
        return render(request, {"stored": stored})

    async def releases(request: Request) -> Response:
        _principal, repo = await access.readable(request)
        found = await names.releases(
            repo.repo_id,
            encoded=encoder(request),
            channel=request.query_params.get("channel") or None,
            drafts=request.query_params.get("include_drafts", "") in ("1", "true"),
        )
        return render(request, {"releases": found})

    async def put_release(request: Request) -> Response:
        principal, repo = await access.writable(request)
        record = await body_of(request, Record, limits)
        caller = caller_of(request, principal)
        release_id = await names.put_release(repo.repo_id, record, caller, limits=limits)
        return render(request, {"release_id": release_id})

    async def delete_release(request: Request) -> Response:
        principal, repo = await access.writable(request)
        tag: str = request.path_params["tag"]
        await names.delete_release(repo.repo_id, tag, caller_of(request, principal))
        return render(request, {"deleted": tag})

    async def delete_branch(request: Request) -> Response:
        principal, repo = await access.writable(request)
        branch: str = request.path_params["branch"]
        head = await names.delete_branch(repo.repo_id, branch, caller_of(request, principal))
        return render(request, {"deleted": branch, "head": head})

    address = "/{owner}/{repo}"
    return [
        Route(f"{address}/tags", tags, methods=["POST"], name="tags"),
        Route(f"{address}/releases", releases, methods=["GET"], name="releases"),
        Route(f"{address}/releases", put_release, methods=["POST"], name="put_release"),
        Route(f"{address}/releases/{{tag:path}}", delete_release, methods=["DELETE"]),
        Route(f"{address}/branches/{{branch:path}}", delete_branch, methods=["DELETE"]),
    ]
