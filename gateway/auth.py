"""Who calls, and what they may do.

    nobody         reads public repos
    read           also reads private repos
    push           reads and pushes; may create a repo by its first push
    admin          everything, and `/v1`

A token may be restricted to named repos. What a caller may not read does not exist for them: a
private repo answers exactly like an absent one. A bad token is 401 everywhere, always in the same
words, whether it is unknown, expired or revoked.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol

from starlette.requests import HTTPConnection

from gateway.errors import Forbidden, RepoMissing, Unauthorized
from gateway.id_prefix import CANDIDATES_MAX, only_one
from gateway.packs.repos import is_owner_name, is_repo_name
from leases.database import Database
from leases.errors import InvalidRequest, NotFound, Unavailable
from leases.ids import new_mpack_id, new_token

TOKEN_PREFIX = "mpk_"  # noqa: S105  lets people and scanners recognise a token
_TOKEN = re.compile(r"mpk_[0-9a-f]{48}\Z", re.ASCII)

_FIND = """
SELECT token_id, name, scopes, repos,
       last_used_at IS NULL OR last_used_at < clock_timestamp() - interval '1 minute' AS stale
FROM api_tokens
WHERE sha256 = $1 AND revoked_at IS NULL
  AND (expires_at IS NULL OR expires_at > clock_timestamp())
"""
_USED = """
UPDATE api_tokens SET last_used_at = clock_timestamp()
WHERE token_id = $1
  AND (last_used_at IS NULL OR last_used_at < clock_timestamp() - interval '1 minute')
"""
_CREATE = """
INSERT INTO api_tokens (token_id, sha256, name, scopes, repos, created_at, expires_at)
VALUES ($1, $2, $3, $4, $5, clock_timestamp(), $6)
"""
_REVOKE = """
UPDATE api_tokens SET revoked_at = clock_timestamp() WHERE token_id = $1 AND revoked_at IS NULL
"""


_LIST = """
SELECT token_id, name, scopes, repos, created_at, expires_at, last_used_at, revoked_at
FROM api_tokens
WHERE $1 OR (revoked_at IS NULL AND (expires_at IS NULL OR expires_at > clock_timestamp()))
ORDER BY token_id
"""
_STARTING_WITH = """
SELECT token_id FROM api_tokens WHERE starts_with(token_id, $1) ORDER BY token_id LIMIT $2
"""


class Scope(StrEnum):
    """What a token is good for; each includes those before it."""

    READ = "read"
    PUSH = "push"
    ADMIN = "admin"


class RepoFacts(Protocol):
    """What a decision needs to know about a repo."""

    @property
    def visibility(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """The caller. Without a token it has no id and no scopes."""

    token_id: str | None = None
    scopes: frozenset[str] = frozenset()
    repos: frozenset[str] | None = None

    @property
    def actor(self) -> str:
        """How events name this caller; never the token itself."""
        return f"token:{self.token_id}" if self.token_id else "anonymous"

    def has(self, scope: Scope, full_name: str | None = None) -> bool:
        """Whether this scope, or one that includes it, covers `owner/slug` (None: everything)."""
        order = list(Scope)
        if not self.scopes.intersection(order[order.index(scope) :]):
            return False
        return self.repos is None or full_name in self.repos


ANONYMOUS = Principal()


def check_read(principal: Principal, repo: RepoFacts | None, full_name: str) -> None:
    """Pass whoever may read this repo; to all others it is absent."""
    if repo is None:
        raise RepoMissing
    if repo.visibility != "public" and not principal.has(Scope.READ, full_name):
        raise RepoMissing


def check_push(principal: Principal, repo: RepoFacts | None, full_name: str) -> None:
    """Pass whoever may push to this repo, or may create it.

    Errors: Unauthorized without a token, whatever is there; RepoMissing where the caller may not
            even read; Forbidden where it may.
    """
    if principal.has(Scope.PUSH, full_name):
        return
    if principal.token_id is None:
        raise Unauthorized
    check_read(principal, repo, full_name)
    raise Forbidden("This token may not push to this repository.")


def check_admin(principal: Principal) -> None:
    """Pass operators."""
    if principal.token_id is None:
        raise Unauthorized
    if not principal.has(Scope.ADMIN):
        raise Forbidden("This needs a token with the scope admin.")


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedToken:
    """A new token; its secret is shown once and kept nowhere."""

    token_id: str
    secret: str


class Tokens:
    """The API tokens; the table holds their hashes."""

    def __init__(self, database: Database, *, reads: Database | None = None) -> None:
        self._database = database
        self._reads = reads or database

    async def principal(self, connection: HTTPConnection) -> Principal:
        """The caller of this request.

        Errors: Unauthorized for any Authorization header that is not one valid bearer token.
        """
        headers = connection.headers.getlist("authorization")
        if not headers:
            return ANONYMOUS
        scheme, _, secret = headers[0].strip().partition(" ")
        if len(headers) > 1 or scheme.lower() != "bearer":
            raise Unauthorized(_REFUSED)
        principal = await self.verify(secret.strip())
        connection.state.token_id = principal.token_id  # The rate limit trusts it from now on.
        return principal

    async def verify(self, secret: str) -> Principal:
        """The principal of a token.

        Effects: notes the use, at most once a minute.
        """
        # One hash and one index look-up, whatever is wrong: the time tells nothing about tokens.
        row = await self._reads.fetchrow(_FIND, _digest(secret))
        if row is None or _TOKEN.match(secret) is None:
            raise Unauthorized(_REFUSED)
        if row["stale"]:
            await self._note_use(row["token_id"])
        return Principal(
            token_id=row["token_id"],
            scopes=frozenset(row["scopes"]),
            repos=None if row["repos"] is None else frozenset(row["repos"]),
        )

    async def _note_use(self, token_id: str) -> None:
        try:
            await self._database.execute(_USED, token_id)
        except Unavailable:
            return  # A note that is missed does not make the caller's request fail.

    async def create(
        self,
        *,
        name: str,
        scopes: Sequence[Scope],
        repos: Sequence[str] | None = None,
        expires_at: datetime | None = None,
    ) -> IssuedToken:
        """Make a token.

        Errors: InvalidRequest for no name or scope, an unreadable repo name, or a restricted admin.
        """
        if not name.strip():
            raise InvalidRequest("A token needs a name: whose it is.")
        if not scopes:
            raise InvalidRequest("A token needs at least one scope.")
        if repos is not None and Scope.ADMIN in scopes:
            raise InvalidRequest("An admin token cannot be restricted to repositories.")
        for full_name in repos or ():
            owner, _slash, slug = full_name.partition("/")
            if not (is_owner_name(owner) and is_repo_name(slug)):
                raise InvalidRequest(f"A repository is written owner/slug, not {full_name!r}.")
        issued = IssuedToken(token_id=new_mpack_id(), secret=TOKEN_PREFIX + new_token(24))
        await self._database.execute(
            _CREATE,
            issued.token_id,
            _digest(issued.secret),
            name,
            sorted({str(scope) for scope in scopes}),
            None if repos is None else sorted(set(repos)),
            expires_at,
        )
        return issued

    async def all(self, *, ended: bool = False) -> list[dict[str, Any]]:
        """The tokens that live, or with `ended` every one there was; the oldest first."""
        return [dict(row) for row in await self._database.fetch(_LIST, ended)]

    async def resolve(self, prefix: str) -> str:
        """The one token's id that begins with this.

        Errors: NotFound; InvalidRequest for more than one.
        """
        rows = await self._database.fetch(_STARTING_WITH, prefix, CANDIDATES_MAX)
        missing = NotFound("No such token.", token_id=prefix)
        return only_one([row["token_id"] for row in rows], prefix, missing=missing)

    async def revoke(self, token_id: str) -> None:
        """End a token now; NotFound when there is none that still lives."""
        if not await self._database.execute(_REVOKE, token_id):
            raise NotFound("No such token, or it is revoked already.")


_REFUSED = "This token is not valid."


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode(errors="replace")).digest()
