"""Whatever a client sends, the answer is a request's type or one sentence with a 4xx status."""

import json
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from msgspec import Raw

from gateway.errors import Incomplete, TooLarge, status_of
from gateway.wire.body import Record, check_text, decode, decode_commit, decode_manifest
from gateway.wire.limits import WireLimits
from gateway.wire.messages import (
    FetchMpackRequest,
    FetchRequest,
    NegotiateRequest,
    PresignRequest,
    PushObjectsRequest,
    PushRequest,
    TagsRequest,
)
from leases.errors import InvalidRequest
from tests.factories import make_history, push_body

LIMITS = WireLimits()
TYPES = (PushRequest, PushObjectsRequest, FetchRequest, FetchMpackRequest)
ID = "1" * 64


def packed(value: Any) -> bytes:
    return bytes(msgpack.packb(value))


HOSTILE = {
    "empty": b"",
    "nil": b"\xc0",
    "number": b"\x07",
    "never used byte": b"\xc1",
    "array": b"\x90",
    "text keys missing": packed({1: 2}),
    "trailing bytes": packed({"want": []}) + b"\x00",
    "json": b'{"want": []}',
    "deep arrays": b"\x81\xa4want" + b"\x91" * 200_000 + b"\x90",
    "deep unknown key": b"\x81\xa1x" + b"\x81\xa1x" * 200_000 + b"\x90",
    "4G arrays declared": b"\x81\xa4want\xdd\xff\xff\xff\xff",
    "4G objects declared": b"\x81\xa7objects\xdd\xff\xff\xff\xff",
    "4G maps declared": b"\x81\xa6bundle\xdf\xff\xff\xff\xff",
    "4G bytes declared": b"\x81\xa7objects\x91\x81\xa7content\xc6\xff\xff\xff\xff",
    "4G map declared": b"\xdf\xff\xff\xff\xff",
    "8 MiB of maps as wants": b"\x81\xa4want\xdd\x00\x80\x00\x00" + b"\x80" * (8 << 20),
    "8 MiB of maps as objects": b"\x81\xa7objects\xdd\x00\x80\x00\x00" + b"\x80" * (8 << 20),
    "8 MiB of maps as commits": b"\x81\xa6bundle\x81\xa7commits\xdd\x00\x80\x00\x00"
    + b"\x80" * (8 << 20),
    "invalid utf-8": b"\x81\xa4want\x91\xd9\x40" + b"\xff" * 64,
    "invalid utf-8 key": b"\x81\xa1\xff\x01",
    "surrogate in utf-8": b"\x82\xa6bundle\x80\xa6branch\xa3\xed\xa0\x80",
    "unhashable key": b"\x81\x81\x01\x02\x03",
    "extension": packed({"want": msgpack.ExtType(5, b"x"), "objects": msgpack.ExtType(5, b"x")}),
    "wants are numbers": packed({"want": [1, 2]}),
    "wants are short": packed({"want": ["abc"]}),
    "objects without content": packed({"objects": [{"object_id": ID}]}),
    "content is text": packed({"objects": [{"object_id": ID, "content": "text"}]}),
    "path holds NUL": packed({"objects": [{"object_id": ID, "content": b"", "path": "a\0b"}]}),
    "bundle is a list": packed({"bundle": [], "branch": "main"}),
    "force is a number": packed({"bundle": {}, "branch": "main", "force": 1}),
    "ttl is NaN": packed({"want": [], "ttl_seconds": float("nan"), "objects": 1}),
    "ttl is infinite": packed({"want": [], "ttl_seconds": float("inf"), "objects": 1}),
    "ttl is negative": packed({"want": [], "ttl_seconds": -1, "objects": 1}),
    "ttl is true": packed({"want": [], "ttl_seconds": True, "objects": 1}),
    "unknown encoding": packed({"want": [], "encoding": "gzip", "objects": 1}),
    "unknown form of snapshots": packed({"want": [], "snapshots": "thin", "objects": 1}),
}


@pytest.mark.parametrize("type_", TYPES, ids=lambda type_: type_.__name__)
@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_msgpack_is_refused_with_one_sentence(body: bytes, type_: type[Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode(body, type_, limits=LIMITS)
    assert status_of(caught.value) in (400, 413, 422)
    assert caught.value.message.endswith((".", ")"))
    assert len(caught.value.message) < 400, "this client shows the first 400 characters"


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"[]", b"{", b"nul", b'{"want": [1]}', b'{"want": []} x', b'{"want": ["\xff"]}'),
        *(b'{"want": [' + b"[" * 100_000, b'{"want": [], "ttl_seconds": 1e999}'),
        *(b'{"want": [], "ttl_seconds": NaN}', '{"want": []}'.encode("utf-16")),
        b'{"want": ["' + b"\\ud800" + b"1" * 64 + b'"]}',
        b'{"want": ["' + b"\\udc00" * 64 + b'"]}',
    ],
)
def test_hostile_json_is_refused_with_one_sentence(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode(body, FetchRequest, limits=LIMITS, body_format="json")
    assert status_of(caught.value) in (400, 422)


def test_truncation_anywhere_is_refused() -> None:
    body = push_body(make_history(1, commits=3).bundle(with_objects=True))
    for length in range(0, len(body), 7):
        with pytest.raises(InvalidRequest):
            decode(body[:length], PushRequest, limits=LIMITS)


def test_a_push_is_read_with_its_records_byte_for_byte() -> None:
    history = make_history(1, commits=3)
    request = decode(push_body(history.bundle()), PushRequest, limits=LIMITS)
    sent = [bytes(record) for record in request.bundle.commits]
    assert sent == [commit.packed for commit in history.commits.values()]


def test_unknown_keys_are_skipped() -> None:
    body = packed({"want": [ID], "later": {"deep": [1, {}]}, "ttl_seconds": 5})
    request = decode(body, FetchMpackRequest, limits=LIMITS)
    assert (request.want, request.ttl_seconds, request.delivery) == ([ID], 5.0, "url")


def test_json_gives_the_same_request_as_msgpack() -> None:
    wish = {"want": [ID], "have": [ID], "ttl_seconds": 1.5, "share": False, "encoding": "zstd"}
    from_json = decode(
        json.dumps(wish).encode(), FetchMpackRequest, limits=LIMITS, body_format="json"
    )
    assert from_json == decode(packed(wish), FetchMpackRequest, limits=LIMITS)


TAG = {"tag_id": "t1", "commit_id": ID, "tag": "v1.0"}
OBJECT = {"object_id": ID, "content": b"12345", "path": "a/b"}


@pytest.mark.parametrize(
    "type_, value, changes",
    [
        (FetchRequest, {"want": [ID, ID]}, {"want_max": 1}),
        (FetchRequest, {"want": [], "have": [ID, ID]}, {"have_max": 1}),
        (FetchRequest, {"want": [ID]}, {"ids_body_bytes_max": 10}),
        (NegotiateRequest, {"want": [ID], "have": [ID, ID]}, {"have_max": 1}),
        (PresignRequest, {"object_ids": [ID, ID], "direction": "put"}, {"presign_put_max": 1}),
        (PresignRequest, {"object_ids": [ID, ID], "direction": "get"}, {"presign_get_max": 1}),
        (TagsRequest, {"tags": [TAG, TAG]}, {"tags_max": 1}),
        (TagsRequest, {"tags": [TAG]}, {"tag_bytes_max": 2}),
        (PushObjectsRequest, {"objects": [OBJECT, OBJECT]}, {"objects_per_chunk_max": 1}),
        (PushObjectsRequest, {"objects": [OBJECT]}, {"object_bytes_max": 4}),
        (PushObjectsRequest, {"objects": [OBJECT]}, {"path_bytes_max": 2}),
        (PushObjectsRequest, {"objects": [OBJECT]}, {"body_bytes_max": 10}),
        (Record, {"tag": "v1"}, {"record_bytes_max": 3}),
        (PushRequest, {"branch": "a", "bundle": {"commits": [1, 2]}}, {"commits_per_push_max": 1}),
        (PushRequest, {"branch": "a", "bundle": {"objects": [OBJECT]}}, {"object_bytes_max": 4}),
    ],
)
def test_what_is_over_a_limit_is_413(
    type_: type[Any], value: dict[str, Any], changes: dict[str, int]
) -> None:
    decode(packed(value), type_, limits=LIMITS)
    with pytest.raises(TooLarge):
        decode(packed(value), type_, limits=replace(LIMITS, **changes))


def test_a_list_over_its_ceiling_is_413_before_it_is_read() -> None:
    """The decoder's own wording tells the two apart: this test notices when it changes."""
    with pytest.raises(TooLarge):
        decode(b"\x81\xa4want\xdd\xff\xff\xff\xff", FetchRequest, limits=LIMITS)


RECORD = make_history(1, commits=1).head.record


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "record",
    [
        b"\x05",
        b"\x80",
        packed({**RECORD, "message": None}),
        packed({**RECORD, "message": "a\0b"}),
        packed({**RECORD, "author": "a\0b"}),
        packed({**RECORD, "branch": "a\0b"}),
        packed({**RECORD, "committed_at": 5}),
        packed({**RECORD, "committed_at": None}),
        packed({**RECORD, "snapshot_id": None}),
        packed({**RECORD, "metadata": nested(100)}),
        packed({**RECORD, "metadata": {1: 2}}),
        packed(RECORD)[:-1],
        # A key that the gateway does not read, but every client will.
        b"\xde\x00\x17" + packed(RECORD)[3:] + b"\xa1x\xa1\xff",
        b"\xde\x00\x17" + packed(RECORD)[3:] + b"\xa1x" + b"\x91" * 100_000 + b"\x90",
    ],
)
def test_a_record_that_a_client_could_not_read_is_refused(record: bytes) -> None:
    decode_commit(Raw(packed(RECORD)), limits=LIMITS)
    with pytest.raises(InvalidRequest):
        decode_commit(Raw(record), limits=LIMITS)


@pytest.mark.parametrize("changes", [{"record_bytes_max": 100}, {"message_bytes_max": 3}])
def test_a_record_over_a_limit_is_413(changes: dict[str, int]) -> None:
    with pytest.raises(TooLarge):
        decode_commit(Raw(packed(RECORD)), limits=replace(LIMITS, **changes))


@pytest.mark.parametrize("count", [2, 20, 70_000])
def test_a_manifest_over_its_limit_is_413(count: int) -> None:
    manifest = Raw(packed({str(number): ID for number in range(count)}))
    assert len(decode_manifest(manifest, limits=LIMITS)) == count
    with pytest.raises(TooLarge):
        decode_manifest(manifest, limits=replace(LIMITS, manifest_entries_max=count - 1))


@pytest.mark.parametrize("manifest", [b"", b"\x90", b"\xc0", b"\xde\x00", b"\x81\xa1a\x05"])
def test_what_is_no_manifest_is_refused(manifest: bytes) -> None:
    with pytest.raises((Incomplete, InvalidRequest)):
        decode_manifest(Raw(manifest), limits=LIMITS)


@pytest.mark.parametrize("text", ["a\0b", "a\ud800"])
def test_a_text_that_postgresql_cannot_hold_is_refused(text: str) -> None:
    with pytest.raises(Incomplete, match="The message"):
        check_text(text, what="The message")


def test_a_decoder_that_runs_out_of_memory_is_413(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("msgspec.msgpack.decode", exhausted)
    with pytest.raises(TooLarge):
        decode(b"\x80", PushRequest, limits=LIMITS)
