"""`POST /{owner}/{repo}/fetch` and `/fetch/mpack`: what a client lacks, inline or behind a URL; and
`POST /{owner}/{repo}/negotiate`, which finds out what it has.

The first two differ in nothing but what they answer when the request does not say: the Muse client
takes a URL-only answer for an empty repo, so `/fetch` answers the pack itself.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gateway.packs.fetch import FetchAnswer
from gateway.packs.inline import InlinePack
from gateway.packs.negotiate import negotiate
from gateway.packs.repos import RepoHeads
from gateway.packs.transaction import reading
from gateway.routes.access import Access, body_of, caller_of
from gateway.service import Service
from gateway.wire.ids import IdForm
from gateway.wire.messages import FetchMpackRequest, FetchRequest, NegotiateRequest
from gateway.wire.render import MSGPACK, render, wanted_format
from leases.errors import InvalidRequest
from leases.lessor import Caller

_ANSWER_FIELDS = tuple(field.name for field in fields(FetchAnswer))


def fetch_routes(access: Access, service: Service) -> list[Route]:
    """The routes that answer packs."""

    async def fetched(request: Request, type_: type[FetchRequest]) -> Response:
        principal, found = await access.readable_heads(request)
        wish = await body_of(request, type_, service.settings.wire)
        caller = caller_of(request, principal)
        answer = _inline if wish.delivery == "inline" else _behind_url
        return await answer(request, service, found, wish=wish, caller=caller)

    async def fetch(request: Request) -> Response:
        return await fetched(request, FetchRequest)

    async def fetch_mpack(request: Request) -> Response:
        return await fetched(request, FetchMpackRequest)

    async def negotiation(request: Request) -> Response:
        _principal, repo = await access.readable(request)
        asked = await body_of(request, NegotiateRequest, service.settings.wire)
        async with reading(service.database) as reader:
            found = await negotiate(
                reader,
                repo.repo_id,
                want=asked.want,
                have=asked.have,
                commits_max=service.settings.pack.negotiate_commits_max,
            )
        form = IdForm.of_first(asked.have or asked.want)
        base = found.common_base
        answer = {
            "ack": [form.write(commit_id) for commit_id in found.ack],
            "common_base": None if base is None else form.write(base),
            "ready": found.ready,
        }
        return render(request, answer)

    address = "/{owner}/{repo}/fetch"
    return [
        Route("/{owner}/{repo}/negotiate", negotiation, methods=["POST"], name="negotiate"),
        Route(address, fetch, methods=["POST"], name="fetch"),
        Route(f"{address}/mpack", fetch_mpack, methods=["POST"], name="fetch_mpack"),
    ]


def _heads(found: RepoHeads, wish: FetchRequest) -> dict[str, str]:
    """The heads in the form in which the request writes ids."""
    form = IdForm.of_first(wish.want)
    return {name: form.write(commit_id) for name, commit_id in found.heads.items()}


async def _behind_url(
    request: Request,
    service: Service,
    found: RepoHeads,
    *,
    wish: FetchRequest,
    caller: Caller,
) -> Response:
    fetched = await service.packs.fetch_mpack(
        partial(reading, service.database),
        found.repo.repo_id,
        want=wish.want,
        have=wish.have,
        seen=frozenset(found.heads.values()),
        ttl_seconds=wish.ttl_seconds,
        ttl_min_seconds=service.settings.lease.ttl_min_http_seconds,
        share=wish.share,
        encoding=wish.encoding,
        snapshots=wish.snapshots,
        caller=caller,
    )
    return render(request, _told(fetched) | {"branch_heads": _heads(found, wish)})


def _told(fetched: FetchAnswer) -> dict[str, Any]:
    """The answer's map; the pack's bytes only where the store has no URLs."""
    # Not `asdict`, which copies every value as deeply as it can.
    told = {name: getattr(fetched, name) for name in _ANSWER_FIELDS}
    if fetched.mpack is None:
        del told["mpack"]
    return told | {"counts": asdict(fetched.counts)}


async def _inline(
    request: Request,
    service: Service,
    found: RepoHeads,
    *,
    wish: FetchRequest,
    caller: Caller,
) -> Response:
    if wish.encoding != "raw":
        raise InvalidRequest("A pack in the answer itself is never compressed; ask for a URL.")
    pack = await service.packs.fetch_inline(
        partial(reading, service.database),
        found.repo.repo_id,
        want=wish.want,
        have=wish.have,
        seen=frozenset(found.heads.values()),
        pairs={"branch_heads": _heads(found, wish)},
        share=wish.share,
        snapshots=wish.snapshots,
        caller=caller,
    )
    accept = ",".join(request.headers.getlist("accept"))
    if wanted_format(accept, default="msgpack") == "json":
        try:
            content = b"".join([chunk async for chunk in pack.chunks])
        finally:
            await pack.close()
        return render(request, msgspec.msgpack.decode(content))
    return PackResponse(pack)


class PackResponse(StreamingResponse):
    """A pack as it is read; closed even when the caller hung up before the first byte."""

    def __init__(self, pack: InlinePack) -> None:
        headers = {
            "Cache-Control": "no-store",
            "Content-Length": str(pack.size_bytes),
            "Vary": "Accept",
        }
        super().__init__(pack.chunks, media_type=MSGPACK, headers=headers)
        self._pack = pack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._pack.close()
