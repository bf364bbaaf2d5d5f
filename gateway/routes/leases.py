"""`/v1/leases` and `/v1/events`: what is leased, what became of it, and the log behind it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.auth import check_admin
from gateway.errors import RepoMissing
from gateway.event_feed import EventFeed
from gateway.lease_listing import (
    PAGE_DEFAULT,
    PAGE_MAX,
    STATES,
    LeaseFilter,
    StateFilter,
)
from gateway.middleware import EVENT_STREAM
from gateway.packs.repos import Repos
from gateway.routes.access import Access
from gateway.routes.event_stream import EventStream, Wanted
from gateway.service import Service
from gateway.wire.render import accepted, render
from leases.errors import InvalidRequest

_POSITION_MAX = 2**63 - 1
_TEXT_MAX = 300  # Longer than any stream, type or id.
_LEASE_PARAMETERS = frozenset(
    {"repo", "repo_id", "state", "from", "to", "prefix", "limit", "cursor"}
)
_EVENT_PARAMETERS = frozenset({"after", "stream", "type", "limit"})


def lease_routes(access: Access, service: Service) -> list[Route]:
    """The operators' routes; all need the scope admin."""
    listing, repos = service.listing, service.repos

    async def check(request: Request) -> None:
        check_admin(await access.principal(request))

    async def leases(request: Request) -> Response:
        await check(request)
        query = _query(request, _LEASE_PARAMETERS)
        wanted = LeaseFilter(
            repo_id=await _repo_id(query, repos),
            state=_state(query.get("state")),
            granted_from=_moment(query, "from"),
            granted_before=_moment(query, "to"),
            id_prefix=query.get("prefix", ""),
        )
        page = await listing.leases(wanted, limit=_limit(query), cursor=query.get("cursor"))
        return render(request, {"leases": page.rows, "next": page.next}, default="json")

    async def lease(request: Request) -> Response:
        await check(request)
        mpack_id = await listing.resolve(request.path_params["mpack_id"])
        return render(request, await listing.lease(mpack_id), default="json")

    async def events(request: Request) -> Response:
        await check(request)
        if EVENT_STREAM in accepted(",".join(request.headers.getlist("accept"))):
            return EventStream(
                service.feed,
                await _wanted(request, service.feed),
                check=lambda: check(request),
                clock=service.clock,
                gauge=service.metrics.event_streams,
            )
        query = _query(request, _EVENT_PARAMETERS)
        page = await listing.events(
            after=_whole(query, "after", 0, least=0, most=_POSITION_MAX),
            stream=query.get("stream"),
            type=query.get("type"),
            limit=_limit(query),
        )
        return render(request, {"events": page.rows, "next": page.next}, default="json")

    return [
        Route("/v1/leases", leases, methods=["GET"], name="leases"),
        Route("/v1/leases/{mpack_id}", lease, methods=["GET"], name="lease"),
        Route("/v1/events", events, methods=["GET"], name="events"),
    ]


def _query(request: Request, known: frozenset[str]) -> dict[str, str]:
    """The parameters; an unknown or doubled one is a mistake, not a filter that does nothing."""
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in known:
            raise InvalidRequest(f"{name[:50]!r} is not a parameter of this call.")
        if name in found:
            raise InvalidRequest(f"{name} is given twice.")
        if len(value) > _TEXT_MAX or "\0" in value:
            raise InvalidRequest(f"{name} cannot hold that.")
        found[name] = value
    return found


async def _wanted(request: Request, feed: EventFeed) -> Wanted:
    """Where a stream begins: behind the last event its client saw, or else with the next one."""
    query = _query(request, _EVENT_PARAMETERS - {"limit"})
    if (last := request.headers.get("last-event-id")) is not None:
        query["after"] = last
    newest = await feed.newest()
    after = _whole(query, "after", newest, least=0, most=_POSITION_MAX)
    if after > newest:
        raise InvalidRequest(f"The log ends at {newest}; nothing was ever at {after}.")
    if after < newest and after < (begin := await feed.beginning()):
        raise InvalidRequest(f"Up to {begin} the log is archived; go on after that.")
    return Wanted(after=after, stream=query.get("stream"), type_=query.get("type"))


async def _repo_id(query: Mapping[str, str], repos: Repos) -> str | None:
    if "repo" not in query:
        return query.get("repo_id")
    owner, slash, slug = query["repo"].partition("/")
    repo = await repos.find(owner=owner, slug=slug) if slash else None
    if repo is None:
        raise RepoMissing(repo=query["repo"])
    return repo.repo_id


def _state(text: str | None) -> StateFilter | None:
    if text is not None and text not in STATES:
        raise InvalidRequest("state is one of " + ", ".join(STATES) + ".")
    return cast("StateFilter | None", text)


def _limit(query: Mapping[str, str]) -> int:
    return _whole(query, "limit", PAGE_DEFAULT, least=1, most=PAGE_MAX)


def _whole(query: Mapping[str, str], name: str, default: int, *, least: int, most: int) -> int:
    text = query.get(name, str(default))
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else -1
    if not least <= number <= most:
        raise InvalidRequest(f"{name} is a whole number from {least} to {most:,}.")
    return number


def _moment(query: Mapping[str, str], name: str) -> datetime | None:
    if name not in query:
        return None
    try:
        # A "+" that was not quoted arrives as a space.
        moment: datetime | Any = datetime.fromisoformat(query[name].replace(" ", "+"))
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise InvalidRequest(f"{name} is a time with its zone, such as 2026-01-31T12:00:00Z.")
    return cast("datetime", moment)
