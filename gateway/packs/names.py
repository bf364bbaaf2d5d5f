"""Names that a repo's clients give to commits besides its branches: tags and releases; and the end
of a branch. Each change is an event of the repo, in the transaction that makes it.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import asyncpg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.errors import MISSING_SHOWN_MAX, Incomplete, NoSuchName, TooLarge
from gateway.packs.known import known_commits
from gateway.packs.repos import hold_repo, repo_stream
from gateway.packs.transaction import reading, transaction, tried_again
from gateway.wire.body import check_text
from gateway.wire.ids import bare
from gateway.wire.limits import WireLimits
from gateway.wire.messages import PushTag
from leases.codec import JSON
from leases.database import Database
from leases.ids import new_event_id, new_mpack_id
from leases.lessor import Caller
from leases.log import EventLog, NewEvent

T = TypeVar("T")

_TOLD_MAX = 100  # Tags named in one event; the count is told in any case.
RELEASES_MAX = 10_000


# The escape itself; behind an odd number of backslashes more it is a text about it.
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")

_TAGS = text("""
INSERT INTO tags (repo_id, tag_id, commit_id, tag, created_at)
SELECT DISTINCT ON (tag_id) :repo_id, tag_id, commit_id, tag, created_at
  FROM unnest(CAST(:tag_ids AS text[]), CAST(:commit_ids AS text[]), CAST(:names AS text[]),
              CAST(:times AS text[])) AS new (tag_id, commit_id, tag, created_at)
 ORDER BY tag_id
ON CONFLICT (repo_id, tag_id) DO UPDATE
   SET commit_id = excluded.commit_id, tag = excluded.tag, created_at = excluded.created_at
 WHERE (tags.commit_id, tags.tag, tags.created_at)
       IS DISTINCT FROM (excluded.commit_id, excluded.tag, excluded.created_at)
RETURNING tag_id""")
_RELEASE = text("""
INSERT INTO releases (repo_id, tag, release_id, record)
VALUES (:repo_id, :tag, COALESCE(CAST(:given AS text), :new_id), CAST(:record AS jsonb))
ON CONFLICT (repo_id, tag) DO UPDATE
   SET record = excluded.record, release_id = COALESCE(CAST(:given AS text), releases.release_id)
RETURNING release_id""")
_RELEASES = """
SELECT convert_to((record || jsonb_build_object('tag', tag, 'release_id', release_id))::text,
                  'UTF8') AS record
  FROM releases
 WHERE repo_id = $1 AND ($2::text IS NULL OR record ->> 'channel' = $2)
   AND ($3 OR NOT (record @> '{"is_draft": true}' OR record @> '{"draft": true}'))
 ORDER BY record ->> 'created_at' DESC NULLS LAST, tag DESC LIMIT $4"""
_OTHERS = text("""
SELECT count(*) AS number, COALESCE(sum(octet_length(record::text)), 0) AS size_bytes
  FROM releases WHERE repo_id = :repo_id AND tag <> :tag""")
_RELEASE_GONE = text("""
DELETE FROM releases WHERE repo_id = :repo_id AND tag = :tag RETURNING release_id""")
_BRANCH_GONE = text("""
DELETE FROM branches WHERE repo_id = :repo_id AND name = :branch AND head_commit_id <> ''
RETURNING head_commit_id""")


class Names:
    """Keeps the tags and releases of repos, and ends their branches.

    Errors of every change: RepoMissing when the repo is deleted meanwhile; Unavailable.
    """

    def __init__(self, database: Database, log: EventLog) -> None:
        self._database = database
        self._log = log

    async def store_tags(self, repo_id: str, tags: Sequence[PushTag], caller: Caller) -> int:
        """Set these tags; answers how many are new or changed.

        Errors: Incomplete (422) with the commits that the repo does not hold.
        """
        commit_ids = [bare(tag.commit_id) for tag in tags]
        await self._check_commits(repo_id, commit_ids)
        values = {
            "repo_id": repo_id,
            "tag_ids": [tag.tag_id for tag in tags],
            "commit_ids": commit_ids,
            "names": [tag.tag for tag in tags],
            "times": [tag.created_at for tag in tags],
        }

        about = _about(repo_id, caller)

        async def change(connection: AsyncConnection) -> NewEvent | None:
            stored = (await connection.execute(_TAGS, values)).scalars().all()
            told: dict[str, JSON] = {"count": len(stored), "tags": [*stored[:_TOLD_MAX]]}
            return NewEvent(type="repo.tagged", data=told, **about) if stored else None

        fact = await self._changed(repo_id, change)
        return 0 if fact is None else cast("int", fact.data["count"])

    async def put_release(
        self, repo_id: str, record: Mapping[str, Any], caller: Caller, *, limits: WireLimits
    ) -> str:
        """Keep a release under its tag, in place of an older one; its id.

        Errors: Incomplete (422) without a tag, or for a commit that the repo does not hold;
                TooLarge.
        """
        tag = _tag_of(record, limits)
        written = _written(record)
        size_bytes = len(written.encode())
        if size_bytes > limits.record_bytes_max:
            raise TooLarge(f"A release may have {limits.record_bytes_max:,} bytes.")
        if commit_id := record.get("commit_id"):
            await self._check_commits(repo_id, [bare(str(commit_id))])
        values = {
            "repo_id": repo_id,
            "tag": tag,
            "given": _release_id_of(record, limits),
            "new_id": new_mpack_id(),
            "record": written,
        }

        about = _about(repo_id, caller)

        async def change(connection: AsyncConnection) -> NewEvent:
            # They are listed in one answer.
            others = (await connection.execute(_OTHERS, values)).one()
            if others.number >= RELEASES_MAX:
                raise TooLarge(f"A repository may have {RELEASES_MAX:,} releases.")
            if others.size_bytes + size_bytes > limits.body_bytes_max:
                most = f"{limits.body_bytes_max:,}"
                raise TooLarge(f"All releases of a repository may have {most} bytes.")
            release_id: str = (await connection.execute(_RELEASE, values)).scalar_one()
            told: dict[str, JSON] = {"tag": tag, "release_id": release_id}
            return NewEvent(type="repo.released", data=told, **about)

        fact = await self._changed(repo_id, change)
        assert fact is not None
        return cast("str", fact.data["release_id"])

    async def releases(
        self,
        repo_id: str,
        *,
        encoded: Callable[[Any], T],
        channel: str | None = None,
        drafts: bool = False,
    ) -> list[T]:
        """The releases' records as `encoded` makes them, the newest first by what they say."""
        if channel is not None:
            check_text(channel, what="The channel")
        found = await self._database.fetch(_RELEASES, repo_id, channel, drafts, RELEASES_MAX)
        return await asyncio.to_thread(_each_encoded, found, encoded)

    async def delete_release(self, repo_id: str, tag: str, caller: Caller) -> None:
        """Take a release away.

        Errors: NoSuchName (404).
        """
        check_text(tag, what="The tag")

        about = _about(repo_id, caller)

        async def change(connection: AsyncConnection) -> NewEvent | None:
            asked = {"repo_id": repo_id, "tag": tag}
            gone = (await connection.execute(_RELEASE_GONE, asked)).scalar_one_or_none()
            told: dict[str, JSON] = {"tag": tag, "release_id": gone}
            return NewEvent(type="repo.release_deleted", data=told, **about) if gone else None

        if await self._changed(repo_id, change) is None:
            raise NoSuchName(f"There is no release {tag}.")

    async def delete_branch(self, repo_id: str, branch: str, caller: Caller) -> str:
        """Take a branch away; where it stood. Its commits stay the repo's.

        Errors: NoSuchName (404).
        """
        check_text(branch, what="The branch")

        about = _about(repo_id, caller)

        async def change(connection: AsyncConnection) -> NewEvent | None:
            asked = {"repo_id": repo_id, "branch": branch}
            head = (await connection.execute(_BRANCH_GONE, asked)).scalar_one_or_none()
            told: dict[str, JSON] = {"branch": branch, "head": head}
            return NewEvent(type="repo.branch_deleted", data=told, **about) if head else None

        fact = await self._changed(repo_id, change)
        if fact is None:
            raise NoSuchName(f"There is no branch {branch}.")
        return cast("str", fact.data["head"])

    async def _changed(
        self, repo_id: str, change: Callable[[AsyncConnection], Awaitable[NewEvent | None]]
    ) -> NewEvent | None:
        """Make the change and tell it in the event that it answers; None: there was none to make.

        When the answer to a COMMIT is lost it is made again: what that finds changed already, the
        first time has told, and an event is known again by its id.
        """
        fact: NewEvent | None = None

        async def work() -> None:
            nonlocal fact
            async with transaction(self._database) as connection:
                await hold_repo(connection, repo_id)
                if (found := await change(connection)) is not None:
                    fact = found
                    await self._log.append_in(connection, [fact])

        await tried_again(work)
        return fact

    async def _check_commits(self, repo_id: str, commit_ids: Sequence[str]) -> None:
        async with reading(self._database) as reader:
            known = await known_commits(reader, repo_id, commit_ids)
        if missing := sorted(set(commit_ids) - known):
            raise Incomplete(
                f"{len(missing)} of the named commits are not in this repository; push them first.",
                missing=missing[:MISSING_SHOWN_MAX],
            )


def _about(repo_id: str, caller: Caller) -> dict[str, Any]:
    """What the event of one change is made of, however often the change is made."""
    return {
        "stream": repo_stream(repo_id),
        "expected_version": None,
        "actor": caller.actor,
        "request_id": caller.request_id,
        "event_id": new_event_id(),
    }


def _written(record: Mapping[str, Any]) -> str:
    """The record as JSON that PostgreSQL can hold."""
    try:
        written = json.dumps(record, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise Incomplete(
            "A release holds what JSON cannot: bytes, NaN or too deep a nest."
        ) from error
    if _NUL.search(written):
        raise Incomplete("A release holds a NUL character.")
    check_text(written, what="A release")
    json.loads(written, parse_int=_fitting)
    return written


def _fitting(digits: str) -> int:
    number = int(digits)
    if not -(1 << 63) <= number < 1 << 64:
        raise Incomplete("A release holds a whole number of more than 64 bits.")
    return number


def _each_encoded(rows: list[asyncpg.Record], encoded: Callable[[Any], T]) -> list[T]:
    """One after the other, each row let go of: a record may take twenty times its bytes as objects,
    and all of them together would take gigabytes.
    """
    rows.reverse()
    count = len(rows)
    return [encoded(json.loads(rows.pop()["record"], parse_int=_sendable)) for _ in range(count)]


def _sendable(digits: str) -> int | float:
    """A number as it was sent: PostgreSQL gives a float such as 1e22 back with all its digits, and
    neither msgpack nor most readers of JSON take whole numbers of that size.
    """
    number = int(digits)
    return number if -(1 << 63) <= number < 1 << 64 else float(number)


def _tag_of(record: Mapping[str, Any], limits: WireLimits) -> str:
    tag = record.get("tag")
    if not isinstance(tag, str) or not tag:
        raise Incomplete("A release needs a tag.")
    check_text(tag, what="The tag")
    if len(tag.encode()) > limits.tag_bytes_max:
        raise TooLarge(f"A release's tag may have {limits.tag_bytes_max:,} bytes.")
    return tag


def _release_id_of(record: Mapping[str, Any], limits: WireLimits) -> str | None:
    """Its own id, if it has one; bounded, because the log tells it, a thousand events a page."""
    given = record.get("release_id")
    if not given:
        return None
    if len(str(given).encode()) > limits.tag_bytes_max:
        raise TooLarge(f"A release's id may have {limits.tag_bytes_max:,} bytes.")
    return str(given)
