"""From the bytes of a request to its type, or one sentence that says what is wrong with them.

Order of the checks: bytes, then declared lengths, then types (all three by the decoder, before it
allocates), then our limits, then the texts. Whatever is sent, the answer is an InvalidRequest:
never a RecursionError, a MemoryError or a database error about a character it cannot hold.
"""

from __future__ import annotations

import re
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Raw

from gateway.errors import Incomplete, TooLarge
from gateway.wire.limits import WireLimits
from gateway.wire.messages import (
    Bundle,
    FetchMpackRequest,
    FetchRequest,
    FilterObjectsRequest,
    NegotiateRequest,
    PresignRequest,
    PushCommit,
    PushObject,
    PushObjectsRequest,
    PushRequest,
    PushTag,
    TagsRequest,
)
from leases.errors import InvalidRequest

T = TypeVar("T")
# A map of whatever its sender likes. No type bounds it, and 64 MiB of empty maps become 5.7 GB of
# objects (tests/fuzz.py), so it may have the bytes of one record and no more.
Record = dict[str, Any]
BodyFormat = Literal["msgpack", "json"]

_OVER_LENGTH = re.compile(r"Expected `\w+` of length <= \d+")
_MANIFEST = msgspec.msgpack.Decoder(dict[str, str])
_COMMIT = msgspec.msgpack.Decoder(PushCommit)
_ANYTHING = msgspec.msgpack.Decoder()
_MAP_HEADER_BYTES = {0xDE: 2, 0xDF: 4}


def decode(
    data: bytes, type_: type[T], *, limits: WireLimits, body_format: BodyFormat = "msgpack"
) -> T:
    """The body as this type, within the limits.

    Errors: InvalidRequest (400) when it is not msgpack or JSON at all; Incomplete (422) when its
            shape is wrong; TooLarge (413) when it, a list or an entry is over a limit.
    """
    bytes_max = _bytes_max(type_, limits)
    if len(data) > bytes_max:
        raise TooLarge(f"The body is over {bytes_max:,} bytes.")
    decoder = msgspec.json.decode if body_format == "json" else msgspec.msgpack.decode
    request: T = _guarded(lambda: decoder(data, type=type_), what="The body")
    _check_limits(request, limits)
    return request


def decode_commit(record: Raw, *, limits: WireLimits) -> PushCommit:
    """The fields of a commit record that the gateway reads.

    The whole record is decoded too, because clients will: a record that this gateway stored and
    that a client cannot read would break every clone of the repo.
    """
    if memoryview(record).nbytes > limits.record_bytes_max:
        raise TooLarge(f"A commit record is over {limits.record_bytes_max:,} bytes.")
    commit: PushCommit = _guarded(lambda: _COMMIT.decode(record), what="A commit record")
    everything = _guarded(lambda: _ANYTHING.decode(record), what="A commit record")
    _check_depth(everything, limits.record_depth_max)
    for name in ("message", "committed_at", "branch", "author"):
        check_text(getattr(commit, name) or "", what=f"The {name} of commit {commit.commit_id}")
    if len(commit.message.encode()) > limits.message_bytes_max:
        raise TooLarge(f"The message of a commit is over {limits.message_bytes_max:,} bytes.")
    return commit


def decode_manifest(manifest: Raw, *, limits: WireLimits) -> dict[str, str]:
    """A pushed manifest as it was sent: path to object id; its paths are not yet checked."""
    if _map_length(memoryview(manifest)) > limits.manifest_entries_max:
        raise TooLarge(f"A manifest holds more than {limits.manifest_entries_max:,} paths.")
    entries: dict[str, str] = _guarded(lambda: _MANIFEST.decode(manifest), what="A manifest")
    return entries


def check_text(text: str, *, what: str) -> None:
    """Refuse what neither the ids' formulas nor a PostgreSQL text can hold."""
    if "\0" in text:
        raise Incomplete(f"{what} holds a NUL character.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Incomplete(f"{what} holds half of a surrogate pair.") from error


def _bytes_max(type_: type, limits: WireLimits) -> int:
    if type_ in _LISTS_OF_IDS:
        return limits.ids_body_bytes_max
    if type_ == Record:
        return limits.record_bytes_max
    return limits.body_bytes_max


def _guarded(decoding: Any, *, what: str) -> Any:
    """Run a decoder; whatever it raises becomes one sentence."""
    try:
        return decoding()
    except msgspec.ValidationError as error:
        message = f"{what} has the wrong shape: {error}."
        raise (TooLarge if _OVER_LENGTH.match(str(error)) else Incomplete)(message) from error
    except RecursionError as error:
        raise InvalidRequest(f"{what} is nested too deeply.") from error
    except MemoryError as error:
        raise TooLarge(f"{what} declares more than fits into memory.") from error
    except (msgspec.DecodeError, ValueError, TypeError, OverflowError) as error:
        raise InvalidRequest(f"{what} cannot be decoded: {error}.") from error


def _check_limits(request: object, limits: WireLimits) -> None:
    match request:
        case PushObjectsRequest():
            _check_objects(request.objects, limits)
        case PushRequest():
            _check_bundle(request.bundle, limits)
        case FilterObjectsRequest():
            _check_count(len(request.object_ids), limits.ids_max, what="object_ids")
        case PresignRequest(direction="put"):
            _check_count(len(request.object_ids), limits.presign_put_max, what="object_ids")
        case PresignRequest():
            _check_count(len(request.object_ids), limits.presign_get_max, what="object_ids")
        case TagsRequest():
            _check_count(len(request.tags), limits.tags_max, what="tags")
            for tag in request.tags:
                _check_tag(tag, limits)
        case FetchRequest() | NegotiateRequest():
            _check_count(len(request.want), limits.want_max, what="want")
            _check_count(len(request.have), limits.have_max, what="have")
        case _:
            pass


def _check_tag(tag: PushTag, limits: WireLimits) -> None:
    for text in (tag.tag_id, tag.tag, tag.created_at or ""):
        check_text(text, what="A tag")
        if len(text.encode()) > limits.tag_bytes_max:
            raise TooLarge(f"A tag's texts may have {limits.tag_bytes_max:,} bytes each.")


def _check_bundle(bundle: Bundle, limits: WireLimits) -> None:
    _check_count(len(bundle.commits), limits.commits_per_push_max, what="commits")
    _check_count(len(bundle.snapshots), limits.commits_per_push_max, what="snapshots")
    _check_objects(bundle.objects, limits)


def _check_objects(objects: list[PushObject], limits: WireLimits) -> None:
    _check_count(len(objects), limits.objects_per_chunk_max, what="objects")
    for item in objects:
        if len(item.content) > limits.object_bytes_max:
            raise TooLarge(
                f"Object {item.object_id} is over {limits.object_bytes_max:,} bytes.",
                object_id=item.object_id,
            )
        if item.path:
            check_text(item.path, what=f"The path of object {item.object_id}")
            if len(item.path.encode()) > limits.path_bytes_max:
                raise TooLarge(f"The path of an object is over {limits.path_bytes_max:,} bytes.")


def _check_count(count: int, count_max: int, *, what: str) -> None:
    if count > count_max:
        raise TooLarge(f"{what} holds {count:,} entries; at most {count_max:,} may be sent.")


def _check_depth(value: object, depth_max: int) -> None:
    """Refuse nesting that other decoders choke on, and keys that they refuse."""
    if depth_max == 0:
        raise Incomplete("A commit record is nested too deeply.")
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str | bytes):
                raise Incomplete("A commit record holds a key that is not a text.")
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            if isinstance(item, dict | list | tuple):
                _check_depth(item, depth_max - 1)


def _map_length(data: memoryview) -> int:
    """How many entries a msgpack map declares; 0 for anything else, which the decoder refuses."""
    if not data.nbytes:
        return 0
    if data[0] & 0xF0 == 0x80:
        return data[0] & 0x0F
    width = _MAP_HEADER_BYTES.get(data[0], 0)
    return int.from_bytes(data[1 : 1 + width], "big")


_LISTS_OF_IDS: frozenset[type] = frozenset(
    {FetchRequest, FetchMpackRequest, FilterObjectsRequest, NegotiateRequest, PresignRequest}
)
