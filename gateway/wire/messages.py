"""What clients send, as types: the only description of a request's body.

Unknown keys are skipped, missing ones have the default written here. Commit records and manifests
stay undecoded (`Raw`): a record is kept byte for byte, and most of what a merge sends again is
never looked at. The list bounds are ceilings (`limits.py`), checked before anything is allocated.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from msgspec import Meta, Raw, Struct

from gateway.wire.limits import (
    COMMITS_CEILING,
    HEADS_CEILING,
    IDS_CEILING,
    OBJECTS_CEILING,
    TAGS_CEILING,
)

# 64 hex digits, with or without the prefix; what they are is checked where they are used.
Id = Annotated[str, Meta(min_length=64, max_length=71)]
Ids = Annotated[list[Id], Meta(max_length=IDS_CEILING)]
Heads = Annotated[dict[str, Id], Meta(max_length=HEADS_CEILING)]
EMPTY_MAP = b"\x80"


class PushObject(Struct, frozen=True, kw_only=True):
    """One object and its bytes; `path` is where the client found it, a hint only."""

    object_id: Id
    content: bytes
    path: str | None = None


class PushSnapshot(Struct, frozen=True, kw_only=True):
    """A snapshot; its manifest is decoded when it turns out to be new."""

    snapshot_id: Id
    manifest: Raw = Raw(EMPTY_MAP)
    created_at: str | None = None


class PushCommit(Struct, frozen=True, kw_only=True):
    """What the gateway reads from a commit record; the record itself stays as it came."""

    commit_id: Id
    snapshot_id: Id
    committed_at: str
    message: str = ""
    parent_commit_id: str | None = None
    parent2_commit_id: str | None = None
    branch: str | None = None
    author: str | None = None

    @property
    def parent_ids(self) -> list[str]:
        """The parents as they are written, the first parent first; empty ones left out."""
        return [text for text in (self.parent_commit_id, self.parent2_commit_id) if text]


Objects = Annotated[list[PushObject], Meta(max_length=OBJECTS_CEILING)]
Commits = Annotated[list[Raw], Meta(max_length=COMMITS_CEILING)]
Snapshots = Annotated[list[PushSnapshot], Meta(max_length=COMMITS_CEILING)]


class PushObjectsRequest(Struct, frozen=True, kw_only=True):
    """POST {url}/push/objects."""

    objects: Objects


class Bundle(Struct, frozen=True, kw_only=True):
    """What a push carries; `commits` holds one undecoded record each."""

    commits: Commits = []
    snapshots: Snapshots = []
    objects: Objects = []
    branch_heads: Heads = {}


class PushRequest(Struct, frozen=True, kw_only=True):
    """POST {url}/push."""

    bundle: Bundle
    branch: str
    force: bool = False


class FilterObjectsRequest(Struct, frozen=True, kw_only=True):
    """POST {url}/filter-objects."""

    object_ids: Ids


class PresignRequest(Struct, frozen=True, kw_only=True):
    """POST {url}/presign."""

    object_ids: Ids
    direction: Literal["put", "get"]
    ttl_seconds: float | None = None

    def __post_init__(self) -> None:
        _check_ttl(self.ttl_seconds)


class NegotiateRequest(Struct, frozen=True, kw_only=True):
    """POST {url}/negotiate: one round, some of what the client has."""

    want: Ids
    have: Ids = []


class PushTag(Struct, frozen=True, kw_only=True):
    """A name for a commit; its id is the client's."""

    tag_id: Annotated[str, Meta(min_length=1, max_length=200)]
    commit_id: Id
    tag: Annotated[str, Meta(min_length=1)]
    created_at: str | None = None


class TagsRequest(Struct, frozen=True, kw_only=True):
    """POST {url}/tags."""

    tags: Annotated[list[PushTag], Meta(max_length=TAGS_CEILING)]


class FetchRequest(Struct, frozen=True, kw_only=True):
    """POST {url}/fetch: inline, because this client turns a URL-only answer into an empty clone."""

    want: Ids
    have: Ids = []
    delivery: Literal["inline", "url"] = "inline"
    ttl_seconds: float | None = None
    share: bool = True
    encoding: Literal["raw", "zstd"] = "raw"
    snapshots: Literal["whole", "delta"] = "whole"

    def __post_init__(self) -> None:
        _check_ttl(self.ttl_seconds)


class FetchMpackRequest(FetchRequest, frozen=True, kw_only=True):
    """POST {url}/fetch/mpack: a lease and a URL, unless the caller asks for the pack itself."""

    delivery: Literal["inline", "url"] = "url"


def _check_ttl(ttl_seconds: float | None) -> None:
    """The decoder turns this ValueError into its own error, with the place in front."""
    if ttl_seconds is not None and not (math.isfinite(ttl_seconds) and ttl_seconds > 0):
        raise ValueError("ttl_seconds must be a number of seconds above zero")
