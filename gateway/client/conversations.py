"""The short conversations: refs, filter-objects, negotiate, fetch/mpack, a lease's story."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.client.errors import BadPack
from gateway.client.exchange import (
    Address,
    Conversation,
    Request,
    ask,
    heads_of,
    text_of,
    texts_of,
)
from gateway.client.value import Value

FILTER_IDS_MAX = 100_000  # 6.7 MB a body; the server takes ten times as many.


class Refs(Value):
    """What a repository has, as the gateway tells it."""

    repo_id: str
    domain: str
    default_branch: str
    branch_heads: Mapping[str, str]


class Negotiated(Value):
    """One round of a negotiation."""

    ack: tuple[str, ...]
    common_base: str | None
    ready: bool


class Wish(Value):
    """What was asked of fetch/mpack; kept, so that an expired URL can be asked for again."""

    want: tuple[str, ...]
    have: tuple[str, ...] = ()
    ttl_seconds: float | None = None
    encoding: str | None = None
    snapshots: str | None = None


class MpackAnswer(Value):
    """A pack that can be downloaded, or, from a gateway without URLs, the pack itself.

    Shapes:  expires_at: RFC 3339 text; told: the whole answer (counts, branch_heads, …).
    """

    wish: Wish
    mpack_id: str | None
    mpack_url: str | None
    sha256: str
    size_bytes: int
    expires_at: str | None
    expires_in: float | None
    branch_heads: Mapping[str, str]
    mpack: bytes | None
    told: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"MpackAnswer(mpack_id={self.mpack_id}, size_bytes={self.size_bytes})"


def refs(address: Address) -> Conversation[Refs]:
    """The heads of a repository."""
    answer = yield from ask(address, Request(method="GET", path="/refs", doing="reading the refs"))
    return Refs(
        repo_id=str(answer.get("repo_id") or ""),
        domain=str(answer.get("domain") or ""),
        default_branch=str(answer.get("default_branch") or ""),
        branch_heads=heads_of(answer),
    )


def filter_objects(address: Address, object_ids: Sequence[str]) -> Conversation[list[str]]:
    """The ids of these that the repository lacks, in the order given."""
    missing: set[str] = set()
    for start in range(0, len(object_ids), FILTER_IDS_MAX):
        part = list(object_ids[start : start + FILTER_IDS_MAX])
        answer = yield from ask(
            address,
            Request(
                method="POST",
                path="/filter-objects",
                doing="asking which objects are missing",
                body={"object_ids": part},
            ),
        )
        missing.update(texts_of(answer, "missing"))
    return [object_id for object_id in object_ids if object_id in missing]


def negotiate(
    address: Address, want: Sequence[str], have: Sequence[str]
) -> Conversation[Negotiated]:
    """One round: which of these commits the gateway knows, and whether that is enough."""
    body = {"want": list(want), "have": list(have)}
    request = Request(method="POST", path="/negotiate", doing="negotiating", body=body)
    answer = yield from ask(address, request)
    base = answer.get("common_base")
    return Negotiated(
        ack=tuple(texts_of(answer, "ack")),
        common_base=base if isinstance(base, str) else None,
        ready=bool(answer.get("ready")),
    )


def fetch_mpack(address: Address, wish: Wish) -> Conversation[MpackAnswer]:
    """Ask for a pack of what `want` reaches and `have` does not."""
    body: dict[str, Any] = {"want": list(wish.want), "have": list(wish.have)}
    if wish.ttl_seconds is not None:
        body["ttl_seconds"] = wish.ttl_seconds
    if wish.encoding is not None:
        body["encoding"] = wish.encoding
    if wish.snapshots is not None:
        body["snapshots"] = wish.snapshots
    request = Request(method="POST", path="/fetch/mpack", doing="fetching a pack", body=body)
    answer = yield from ask(address, request)
    return _read_mpack_answer(answer, wish)


def _read_mpack_answer(answer: Mapping[str, Any], wish: Wish) -> MpackAnswer:
    mpack, url, size = answer.get("mpack"), answer.get("mpack_url"), answer.get("size_bytes")
    if not isinstance(url, str) and not isinstance(mpack, bytes):
        raise BadPack("The gateway answered neither a URL nor a pack.")
    if not isinstance(size, int):
        if not isinstance(mpack, bytes):
            raise BadPack("The gateway did not say how large the pack is.")
        size = len(mpack)
    expires_in = answer.get("expires_in")
    return MpackAnswer(
        wish=wish,
        mpack_id=_text_or_none(answer.get("mpack_id")),
        mpack_url=_text_or_none(url),
        sha256=text_of(answer, "sha256").removeprefix("sha256:"),
        size_bytes=size,
        expires_at=_text_or_none(answer.get("expires_at")),
        expires_in=float(expires_in) if isinstance(expires_in, int | float) else None,
        branch_heads=heads_of(answer),
        mpack=mpack if isinstance(mpack, bytes) else None,
        told={key: value for key, value in answer.items() if key not in ("mpack", "mpack_url")},
    )


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) else None
