"""Push and fetch over HTTP: inline, behind a URL, in both forms, and gone at its deadline."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zstandard

from leases.policy import LeasePolicy
from tests.factories import History
from tests.integration.gateways import LiveGateway, bundle_of, serving, settings_for


def two_commits() -> History:
    history = History()
    first = history.commit({"a.txt": history.content(b"a")})
    history.commit(
        {"a.txt": history.content(b"a"), "b": history.content(b"b" * 9)}, parents=[first]
    )
    return history


@pytest.fixture
async def pushed(live_gateway: LiveGateway) -> tuple[LiveGateway, History, str]:
    history = two_commits()
    token = await live_gateway.token("push")
    answer = await live_gateway.push("o/r", history, token=token)
    assert answer.status == 200, answer.body
    assert answer.body["ok"] is True
    return live_gateway, history, answer.body["branch_heads"]["main"]


Pushed = tuple[LiveGateway, History, str]


def check_whole(pack: dict[str, Any], history: History) -> None:
    contents = {item["object_id"]: item["content"] for item in pack["objects"]}
    assert contents == history.contents
    assert {item["commit_id"] for item in pack["commits"]} == set(history.commits)
    assert len(pack["snapshots"]) == 2


async def test_fetch_answers_the_pack_itself(pushed: Pushed) -> None:
    gateway, history, head = pushed
    answer = await gateway.call("POST", "/o/r/fetch", {"want": [head, head], "have": []})
    assert (answer.status, answer.headers["content-type"]) == (200, "application/x-msgpack")
    check_whole(answer.body, history)
    assert answer.body["branch_heads"] == {"main": head}
    assert "content-encoding" not in answer.headers


async def test_json_is_for_those_who_ask_for_it_alone(pushed: Pushed) -> None:
    gateway, history, head = pushed
    headers = {"Accept": "application/json"}
    answer = await gateway.call("POST", "/o/r/fetch", {"want": [head]}, headers=headers)
    assert answer.headers["content-type"] == "application/json"
    pack = answer.body
    for item in pack["objects"]:
        item["content"] = base64.b64decode(item["content"])
    check_whole(pack, history)


async def test_a_client_lacks_only_what_is_new(pushed: Pushed) -> None:
    gateway, history, head = pushed
    first = next(iter(history.commits))
    answer = await gateway.call("POST", "/o/r/fetch", {"want": [head], "have": [first, "f" * 64]})
    assert [item["commit_id"] for item in answer.body["commits"]] == [head]
    assert [item["content"] for item in answer.body["objects"]] == [b"b" * 9]
    nothing = await gateway.call("POST", "/o/r/fetch", {"want": [head], "have": [head]})
    assert nothing.body["commits"] == []


@pytest.mark.parametrize("encoding", ["raw", "zstd"])
async def test_a_pack_behind_a_url(pushed: Pushed, encoding: str) -> None:
    gateway, history, head = pushed
    wish = {"want": [head], "have": [], "ttl_seconds": 60, "encoding": encoding}
    answer = await gateway.call("POST", "/o/r/fetch/mpack", wish)
    assert answer.status == 200, answer.body
    told = answer.body
    assert 59 < told["expires_in"] <= 60
    assert told["expires_at"].endswith("Z")
    assert told["counts"] == {"commits": 2, "snapshots": 2, "objects": 2}
    assert told["branch_heads"] == {"main": head}
    assert "mpack" not in told
    blob = (await gateway.http.get(told["mpack_url"])).content
    assert hashlib.sha256(blob).hexdigest() == told["sha256"]
    assert len(blob) == told["size_bytes"]
    if encoding == "zstd":
        blob = zstandard.ZstdDecompressor().decompressobj().decompress(blob)
    check_whole(msgpack.unpackb(blob), history)


async def test_delivery_overrides_the_address(pushed: Pushed) -> None:
    gateway, history, head = pushed
    url = await gateway.call("POST", "/o/r/fetch", {"want": [head], "delivery": "url"})
    assert url.body["mpack_url"]
    inline = await gateway.call("POST", "/o/r/fetch/mpack", {"want": [head], "delivery": "inline"})
    check_whole(inline.body, history)
    both = {"want": [head], "delivery": "inline", "encoding": "zstd"}
    assert (await gateway.call("POST", "/o/r/fetch", both)).status == 400


async def test_answers_echo_the_form_of_the_ids(pushed: Pushed) -> None:
    gateway, _, head = pushed
    answer = await gateway.call("POST", "/o/r/fetch", {"want": [f"sha256:{head}"]})
    assert answer.body["branch_heads"] == {"main": f"sha256:{head}"}


async def test_an_inline_answer_over_the_limit_is_413(database_url: str, tmp_path: Path) -> None:
    settings = settings_for(database_url, tmp_path / "data")
    settings = replace(settings, pack=replace(settings.pack, inline_bytes_max=100))
    async with serving(settings) as gateway:
        token = await gateway.token("push")
        answer = await gateway.push("o/r", two_commits(), token=token)
        head = answer.body["branch_heads"]["main"]
        answer = await gateway.call("POST", "/o/r/fetch", {"want": [head]})
        assert (answer.status, answer.body["code"]) == (413, "too_large")


async def test_filter_objects_tells_what_is_missing(pushed: Pushed) -> None:
    gateway, history, _ = pushed
    known, unknown = next(iter(history.contents)), "e" * 64
    body = {"object_ids": [known, unknown, unknown, f"sha256:{known}", f"sha256:{unknown}"]}
    answer = await gateway.call("POST", "/o/r/filter-objects", body)
    assert answer.body == {"missing": [unknown, f"sha256:{unknown}"]}


async def test_pushing_again_changes_nothing(pushed: Pushed) -> None:
    gateway, history, head = pushed
    token = await gateway.token("push")
    body = {"bundle": bundle_of(history), "branch": "main"}
    answer = await gateway.call("POST", "/o/r/push", body, token=token)
    assert answer.body["ok"] is True
    assert answer.body["remote_head"] == head


@pytest.fixture
async def quick_gateway(database_url: str, tmp_path: Path) -> AsyncIterator[LiveGateway]:
    policy = LeasePolicy(share_ttl_min_seconds=1)
    async with serving(settings_for(database_url, tmp_path / "data", lease=policy)) as gateway:
        yield gateway


async def test_the_blob_is_gone_within_a_second_of_its_deadline(
    quick_gateway: LiveGateway,
) -> None:
    token = await quick_gateway.token("push", "admin")
    head = (await quick_gateway.push("o/r", two_commits(), token=token)).body["remote_head"]
    wish = {"want": [head], "have": [], "ttl_seconds": 1}
    told = (await quick_gateway.call("POST", "/o/r/fetch/mpack", wish)).body
    assert (await quick_gateway.http.get(told["mpack_url"])).status_code == 200
    listing, mpack_id = quick_gateway.service.listing, told["mpack_id"]
    appended = asyncio.Event()
    await quick_gateway.service.engine.instance.listen(
        "mpack_events", lambda _position: appended.set()
    )
    async with asyncio.timeout(10):
        while (lease := await listing.lease(mpack_id))["state"] != "reclaimed":
            await appended.wait()
            appended.clear()
    assert 0 <= lease["lateness_ms"] < 1000
    assert lease["reclaimed_at"] >= lease["delete_at"]
    assert [event["type"] for event in lease["events"]].count("lease.reclaimed") == 1
    assert (await quick_gateway.http.get(told["mpack_url"])).status_code in (403, 404)
