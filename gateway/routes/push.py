"""`POST /{owner}/{repo}/push/objects` and `POST /{owner}/{repo}/push`: what clients send."""

from __future__ import annotations

from dataclasses import asdict

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.routes.access import Access, body_of, caller_of
from gateway.service import Service
from gateway.wire.messages import PushObjectsRequest, PushRequest
from gateway.wire.render import render


def push_routes(access: Access, service: Service) -> list[Route]:
    """The routes that change a repo; the caller is checked before its body is read."""
    limits = service.settings.wire

    async def push_objects(request: Request) -> Response:
        principal, repo = await access.pushable(request)
        sent = await body_of(request, PushObjectsRequest, limits)
        caller = caller_of(request, principal)
        return render(
            request, asdict(await service.segments.store(repo.repo_id, sent.objects, caller))
        )

    async def push(request: Request) -> Response:
        principal, repo = await access.pushable(request)
        sent = await body_of(request, PushRequest, limits)
        caller = caller_of(request, principal)
        return render(request, asdict(await service.pushes.push(repo, sent, caller)))

    address = "/{owner}/{repo}/push"
    return [
        Route(f"{address}/objects", push_objects, methods=["POST"], name="push_objects"),
        Route(address, push, methods=["POST"], name="push"),
    ]
