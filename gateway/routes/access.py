"""What the routes share: the repo of an address for this caller, the body of a request."""

from __future__ import annotations

from typing import TypeVar

from starlette.requests import Request

from gateway.auth import Principal, Scope, Tokens, check_push, check_read
from gateway.errors import RepoMissing
from gateway.packs.repos import (
    Repo,
    RepoHeads,
    Repos,
    Visibility,
    is_owner_name,
    is_repo_name,
)
from gateway.wire.body import decode
from gateway.wire.limits import WireLimits
from gateway.wire.render import body_format
from leases.lessor import Caller

T = TypeVar("T")


class Access:
    """Finds repos for callers, and hides from them what they may not see."""

    def __init__(
        self, tokens: Tokens, repos: Repos, *, create_on_push: bool, visibility: Visibility
    ) -> None:
        self._tokens = tokens
        self._repos = repos
        self._create_on_push = create_on_push
        self._visibility = visibility

    async def principal(self, request: Request) -> Principal:
        """The caller. Errors: Unauthorized for a bad token."""
        return await self._tokens.principal(request)

    async def readable(self, request: Request) -> tuple[Principal, Repo]:
        """The caller and the repo, which the caller may read."""
        principal, repo, full_name = await self._found(request)
        check_read(principal, repo, full_name)
        assert repo is not None
        return principal, repo

    async def readable_heads(self, request: Request) -> tuple[Principal, RepoHeads]:
        """As `readable`, with the repo's heads."""
        principal, found, full_name = await self._found_heads(request)
        check_read(principal, found.repo if found else None, full_name)
        assert found is not None
        return principal, found

    async def readable_or_new(self, request: Request) -> Repo | None:
        """The repo, which the caller may read; None for one that is not there and that a push of
        this caller will make.
        """
        principal, repo, full_name = await self._found(request)
        if repo is None and self._may_make(principal, full_name):
            return None
        check_read(principal, repo, full_name)
        return repo

    async def readable_heads_or_new(self, request: Request) -> RepoHeads | None:
        """As `readable_or_new`, with the repo's heads."""
        principal, found, full_name = await self._found_heads(request)
        if found is None and self._may_make(principal, full_name):
            return None
        check_read(principal, found.repo if found else None, full_name)
        return found

    async def new_id(self, request: Request) -> str:
        """The id that the repo of this address will have when it is made."""
        owner, slug = _names(request)
        return await self._repos.next_id(owner=owner, slug=slug)

    async def readable_by_id(self, request: Request, repo_id: str) -> Repo:
        """The repo with this id, which the caller may read."""
        principal = await self.principal(request)
        repo = await self._repos.find_by_id(repo_id)
        check_read(principal, repo, f"{repo.owner}/{repo.slug}" if repo else "")
        assert repo is not None
        return repo

    async def writable(self, request: Request) -> tuple[Principal, Repo]:
        """The caller and the repo, which is there and which the caller may push to."""
        principal, repo, full_name = await self._found(request)
        check_push(principal, repo, full_name)
        if repo is None:
            raise RepoMissing
        return principal, repo

    async def pushable(self, request: Request) -> tuple[Principal, Repo]:
        """The caller and the repo, which the caller may push to; a first push makes it."""
        principal, repo, full_name = await self._found(request)
        check_push(principal, repo, full_name)
        if repo is None:
            if not self._create_on_push:
                raise RepoMissing
            owner, slug = _names(request)
            repo = await self._repos.ensure(
                owner=owner,
                slug=slug,
                visibility=self._visibility,
                caller=caller_of(request, principal),
            )
        return principal, repo

    async def _found(self, request: Request) -> tuple[Principal, Repo | None, str]:
        """The caller, the repo of this address if there is one, and its name."""
        principal = await self.principal(request)
        owner, slug = _names(request)
        return principal, await self._repos.find(owner=owner, slug=slug), f"{owner}/{slug}"

    async def _found_heads(self, request: Request) -> tuple[Principal, RepoHeads | None, str]:
        """As `_found`, with the repo's heads."""
        principal = await self.principal(request)
        owner, slug = _names(request)
        return principal, await self._repos.find_heads(owner=owner, slug=slug), f"{owner}/{slug}"

    def _may_make(self, principal: Principal, full_name: str) -> bool:
        """Whether a push of this caller makes the repo."""
        return self._create_on_push and principal.has(Scope.PUSH, full_name)


def caller_of(request: Request, principal: Principal) -> Caller:
    """How events name this request."""
    return Caller(actor=principal.actor, request_id=request.state.request_id)


async def body_of(request: Request, type_: type[T], limits: WireLimits) -> T:
    """The body, decoded and within the limits."""
    form = body_format(request.headers.get("content-type"))
    return decode(await request.body(), type_, limits=limits, body_format=form)


def _names(request: Request) -> tuple[str, str]:
    owner, slug = request.path_params["owner"], request.path_params["repo"]
    if not (is_owner_name(owner) and is_repo_name(slug)):
        raise RepoMissing  # Nothing can be stored under such a name.
    return owner, slug
