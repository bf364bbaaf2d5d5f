"""Repos: finding them, making them, and where their branches stand."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from typing import Any, Literal, NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.errors import Incomplete, RepoMissing
from gateway.packs.joined import Joined
from gateway.packs.transaction import transaction, tried_again
from gateway.wire.body import check_text
from leases.database import Database
from leases.lessor import Caller
from leases.log import EventLog, NewEvent

Visibility = Literal["public", "private"]

_FIELDS = (
    *("repo_id", "owner", "slug", "visibility", "domain"),
    *("default_branch", "created_at", "pushed_at"),
)
_COLUMNS = ", ".join(_FIELDS)
_BY_NAME = f"""
SELECT {_COLUMNS} FROM repos WHERE owner = $1 AND slug = $2 AND deleted_at IS NULL"""  # noqa: S608  constants
_BY_ID = f"SELECT {_COLUMNS} FROM repos WHERE repo_id = $1 AND deleted_at IS NULL"  # noqa: S608  constants
_INSERT = text("""
INSERT INTO repos (repo_id, owner, slug, visibility) VALUES (:repo_id, :owner, :slug, :visibility)
ON CONFLICT DO NOTHING RETURNING repo_id""")
_LIST = """
SELECT repo_id, owner || '/' || slug AS name, visibility, created_at, pushed_at, deleted_at
  FROM repos WHERE ($1::text IS NULL OR owner = $1) AND ($2 OR deleted_at IS NULL)
 ORDER BY owner, slug"""
_DELETE = text("""
UPDATE repos SET deleted_at = clock_timestamp()
 WHERE repo_id = :repo_id AND deleted_at IS NULL RETURNING repo_id""")
_HOLD = text("""
SELECT repo_id FROM repos WHERE repo_id = :repo_id AND deleted_at IS NULL FOR KEY SHARE""")
_HEADS = """
SELECT name, head_commit_id FROM branches
 WHERE repo_id = $1 AND head_commit_id <> '' ORDER BY name"""
# One statement where there were two: every clone asks for both, twice.
_WITH_HEADS = f"""
SELECT {_COLUMNS}, heads.names, heads.ids
  FROM repos CROSS JOIN LATERAL (
         SELECT array_agg(name ORDER BY name) AS names,
                array_agg(head_commit_id ORDER BY name) AS ids
           FROM branches
          WHERE branches.repo_id = repos.repo_id AND head_commit_id <> '') AS heads
 WHERE owner = $1 AND slug = $2 AND deleted_at IS NULL"""  # noqa: S608  constants

_USED = "SELECT stream FROM event_streams WHERE stream = ANY ($1::text[])"
_IDS_AT_ONCE = 16

# What an address can hold without quoting, and no file system reads in its own way.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


# What a repo begins with (the columns' defaults).
DOMAIN = "code"
DEFAULT_BRANCH = "main"


@dataclass(frozen=True, slots=True, kw_only=True)
class Repo:
    """A row of `repos`."""

    repo_id: str
    owner: str
    slug: str
    visibility: Visibility
    domain: str
    default_branch: str
    created_at: datetime
    pushed_at: datetime | None


class RepoHeads(NamedTuple):
    """A repo, and where its branches stand: bare ids by name, no branch without a head."""

    repo: Repo
    heads: Mapping[str, str]


def repo_stream(repo_id: str) -> str:
    """The stream of a repo's events."""
    return f"repo/{repo_id}"


# First words of addresses that are no repo's; a repo of such an owner could not be reached.
RESERVED_OWNERS = frozenset({"blobs", "v1"})


def is_owner_name(name: str) -> bool:
    """Whether this may be an owner."""
    return is_repo_name(name) and name.lower() not in RESERVED_OWNERS


def is_repo_name(name: str) -> bool:
    """Whether this may be a slug."""
    return _NAME.fullmatch(name) is not None and not name.endswith((".", ".git"))


async def find_repo(database: Database, *, owner: str, slug: str) -> Repo | None:
    """The repo of that name; None for unknown and for deleted ones."""
    row = await database.fetchrow(_BY_NAME, owner, slug)
    return None if row is None else Repo(**row)


async def hold_repo(connection: AsyncConnection, repo_id: str) -> None:
    """Keep the repo's row until the transaction ends: `gc` takes a deleted one away only behind it.

    Errors: RepoMissing.
    """
    if (await connection.execute(_HOLD, {"repo_id": repo_id})).one_or_none() is None:
        raise RepoMissing(repo_id=repo_id)


async def branch_heads(database: Database, repo_id: str) -> dict[str, str]:
    """Where every branch stands (bare ids), by name; no branch without a head."""
    rows = await database.fetch(_HEADS, repo_id)
    return {row["name"]: row["head_commit_id"] for row in rows}


async def find_heads(database: Database, *, owner: str, slug: str) -> RepoHeads | None:
    """The repo of that name with its heads; None for unknown and for deleted ones."""
    row = await database.fetchrow(_WITH_HEADS, owner, slug)
    if row is None:
        return None
    heads = dict(zip(row["names"] or (), row["ids"] or (), strict=True))
    return RepoHeads(Repo(**{name: row[name] for name in _FIELDS}), heads)


def default_branch(repo: Repo, heads: Mapping[str, str]) -> str:
    """The repo's default branch, or its first one where that has no head."""
    if repo.default_branch in heads or not heads:
        return repo.default_branch
    return min(heads)


async def list_repos(
    database: Database, *, owner: str | None = None, deleted: bool = False
) -> list[dict[str, Any]]:
    """Every repo by name, `owner/slug` as `name`; with `deleted` also those that `gc` waits for."""
    return [dict(row) for row in await database.fetch(_LIST, owner, deleted)]


class Repos:
    """Makes and deletes repos; each making and each deletion is an event."""

    def __init__(self, database: Database, log: EventLog, *, reads: Database | None = None) -> None:
        self._database = database
        self._reads = reads or database
        self._log = log
        self._found = Joined[Repo | None]()
        self._heads = Joined[RepoHeads | None]()

    async def find(self, *, owner: str, slug: str) -> Repo | None:
        """The repo of that name; None for unknown and for deleted ones, and for no name at all."""
        if not (is_owner_name(owner) and is_repo_name(slug)):
            return None

        async def find() -> Repo | None:
            return await find_repo(self._reads, owner=owner, slug=slug)

        return await self._found.ask((owner, slug), find)

    async def find_heads(self, *, owner: str, slug: str) -> RepoHeads | None:
        """As `find`, with the repo's heads; the map is others' as well."""
        if not (is_owner_name(owner) and is_repo_name(slug)):
            return None

        async def find() -> RepoHeads | None:
            return await find_heads(self._reads, owner=owner, slug=slug)

        return await self._heads.ask((owner, slug), find)

    async def find_by_id(self, repo_id: str) -> Repo | None:
        """The repo with that id; None for unknown and for deleted ones."""
        check_text(repo_id, what="The repo_id")
        row = await self._database.fetchrow(_BY_ID, repo_id)
        return None if row is None else Repo(**row)

    async def next_id(self, *, owner: str, slug: str) -> str:
        """The id that the next repo of this name will have.

        It is told to a client before its first push makes the repo, so it follows from the name,
        the log, and how many repos of this name there were: an id is never used again.
        """
        log_id = (await self._log.head())["log_id"]
        for start in count(step=_IDS_AT_ONCE):
            told = [f"{log_id}\0{owner}\0{slug}\0{start + one}" for one in range(_IDS_AT_ONCE)]
            ids = [hashlib.sha256(text.encode()).hexdigest()[:32] for text in told]
            rows = await self._database.fetch(_USED, [repo_stream(one) for one in ids])
            used = {row["stream"] for row in rows}
            free = [one for one in ids if repo_stream(one) not in used]
            if free:
                return free[0]
        raise AssertionError

    async def ensure(
        self, *, owner: str, slug: str, visibility: Visibility, caller: Caller
    ) -> Repo:
        """The repo of that name, made now if there is none.

        Effects: at most one row and its `repo.created`, also when two callers race.
        Errors:  Incomplete (422) for a name that cannot be one; RepoMissing when it was deleted.
        """
        if owner.lower() in RESERVED_OWNERS:
            raise Incomplete(f"No repo can be {owner}'s: that address is the gateway's own.")
        if not (is_owner_name(owner) and is_repo_name(slug)):
            raise Incomplete("A repository's name has up to 100 letters, digits, '.', '_' and '-'.")
        found = await self.find(owner=owner, slug=slug)
        if found is not None:
            return found
        await tried_again(
            lambda: self._create(
                {"owner": owner, "slug": slug, "visibility": visibility}, caller=caller
            )
        )
        made = await self.find(owner=owner, slug=slug)
        if made is None:  # A deleted repo keeps its name until `gc` has removed what it held.
            raise RepoMissing("This repository was deleted; its name is free after the next gc.")
        return made

    async def delete(self, *, owner: str, slug: str, caller: Caller) -> Repo:
        """Let nobody find the repo any more; what it held stays for `gc`.

        Effects: one row changed, with its `repo.deleted`.
        Errors:  RepoMissing.
        """
        found = await self.find(owner=owner, slug=slug)
        if found is None:
            raise RepoMissing(repo=f"{owner}/{slug}")
        deleted = NewEvent(
            stream=repo_stream(found.repo_id),
            type="repo.deleted",
            data={"owner": owner, "slug": slug},
            expected_version=None,
            actor=caller.actor,
            request_id=caller.request_id,
        )

        async def work() -> None:
            async with transaction(self._database) as connection:
                gone = await connection.execute(_DELETE, {"repo_id": found.repo_id})
                if gone.one_or_none() is not None:
                    await self._log.append_in(connection, [deleted])

        await tried_again(work)
        return found

    async def _create(self, columns: dict[str, Any], *, caller: Caller) -> None:
        repo_id = await self.next_id(owner=columns["owner"], slug=columns["slug"])
        created = NewEvent(
            stream=repo_stream(repo_id),
            type="repo.created",
            data=columns,
            expected_version=0,
            actor=caller.actor,
            request_id=caller.request_id,
        )
        async with transaction(self._database) as connection:
            inserted = await connection.execute(_INSERT, columns | {"repo_id": repo_id})
            if inserted.one_or_none() is not None:
                await self._log.append_in(connection, [created])
