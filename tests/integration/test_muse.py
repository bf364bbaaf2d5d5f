"""The Muse client's sequences, byte for byte, against a gateway that serves."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from gateway.packs import names as names_module
from gateway.wire.ids import commit_id_of, snapshot_id_of
from gateway.wire.limits import WireLimits
from leases.model import LeaseKind
from leases.policy import LeasePolicy
from tests.factories import History, make_history
from tests.integration.gateways import LiveGateway, serving, settings_for
from tests.leasing import until
from tests.muse import LARGE_BYTES, Muse, heard
from tests.stores import view_of

pytestmark = pytest.mark.both_stores

FORM = [("Content-Type", "application/x-www-form-urlencoded")]


@pytest.fixture
async def gateway(database_url: str, tmp_path: Path) -> AsyncIterator[LiveGateway]:
    async with serving(settings_for(database_url, tmp_path / "data")) as gateway:
        yield gateway


async def muse(gateway: LiveGateway, name: str = "ada/song") -> Muse:
    return Muse(url=f"{gateway.url}/{name}", token=await gateway.token("push"))


def seven_files() -> History:
    history = History()
    large = random.Random(7).randbytes(200_000)
    small = {f"folder/{one}.txt": history.content(f"file {one}\n".encode()) for one in range(6)}
    history.commit({**small, "large.bin": history.content(large)})
    return history


def check_whole(pack: dict[str, Any], history: History) -> None:
    """Everything is there, and every id recomputes from what came."""
    contents = {one["object_id"]: one["content"] for one in pack["objects"]}
    assert contents == history.contents
    for object_id, content in contents.items():
        assert hashlib.sha256(content).hexdigest() == object_id
    snapshots = {one["snapshot_id"]: one["manifest"] for one in pack["snapshots"]}
    assert all(snapshot_id_of(manifest) == one for one, manifest in snapshots.items())
    assert {one["commit_id"]: msgpack.packb(one) for one in pack["commits"]} == {
        made.commit_id: made.packed for made in history.commits.values()
    }
    for one in pack["commits"]:
        parents = [one[key] for key in ("parent_commit_id", "parent2_commit_id") if one[key]]
        told = {"message": one["message"], "committed_at": one["committed_at"]}
        assert commit_id_of(parents, one["snapshot_id"], **told) == one["commit_id"]
        assert one["snapshot_id"] in snapshots


async def test_the_whole_life_of_a_working_copy(gateway: LiveGateway) -> None:
    me = await muse(gateway)
    refs = await me.refs()
    assert refs["branch_heads"] == {}
    history = seven_files()
    first = await me.push(history)
    assert first.body["ok"] is True
    head = history.head.commit_id
    assert first.body["branch_heads"] == {"main": head}
    assert (await me.refs())["repo_id"] == refs["repo_id"]
    check_whole(await me.clone(), history)

    assert (await me.push(history)).body["message"] == "up to date"
    one = history.commit(
        {**history.head.manifest, "new": history.content(b"new")},
        parents=[history.head],
        committed_at="2026-03-01T12:00:00.12+05:30",
        unknown_key={"kept": [1, None, b"bytes"]},
    )
    assert (await me.push(history, [one])).body["remote_head"] == one.commit_id
    assert (await me.push(history, [one], branch="other")).body["ok"] is True
    # Two branches at one commit: the clone wants it twice.
    check_whole(await me.clone(), history)

    away = history.commit({"x": history.content(b"x")}, parents=[history.commits[head]])
    refused = await me.push(history, [away])
    assert refused.status == 409
    assert (await me.refs())["branch_heads"]["main"] == one.commit_id
    assert (await me.push(history, [away], force=True)).body["ok"] is True
    pulled = await me.pull([head])
    assert {entry["commit_id"] for entry in pulled["commits"]} == {away.commit_id}
    assert [entry["content"] for entry in pulled["objects"]] == [b"x"]


async def test_a_pull_that_is_up_to_date_or_far_behind(gateway: LiveGateway) -> None:
    me = await muse(gateway)
    history = make_history(11, commits=150, merges=True)
    assert (await me.push(history)).body["ok"] is True
    ids = list(history.commits)
    assert (await me.pull([ids[-1]]))["commits"] == []
    random.Random(5).shuffle(ids)
    behind = [one for one in ids if one in history.ancestry([list(history.commits)[40]])]
    pack = await me.pull(["f" * 64, *behind])
    assert history.head.commit_id in {one["commit_id"] for one in pack["commits"]}


async def test_the_same_content_in_two_repos(gateway: LiveGateway) -> None:
    history = seven_files()
    for name in ("ada/one", "ada/two"):
        me = await muse(gateway, name)
        assert (await me.push(history)).body["ok"] is True
    check_whole(await (await muse(gateway, "ada/two")).clone(), history)
    row = await gateway.service.database.row(
        "SELECT count(*) AS places, count(DISTINCT entity_id) AS objects FROM mpack_index"
    )
    assert row["places"] == row["objects"] == len(history.contents)


async def test_a_hundred_thousand_haves(gateway: LiveGateway) -> None:
    me = await muse(gateway)
    history = make_history(3, commits=20)
    await me.push(history)
    chance = random.Random(1)
    have = [chance.randbytes(32).hex() for _ in range(99_990)] + list(history.commits)[:10]
    chance.shuffle(have)
    head = history.head.commit_id
    told = await me.call("POST", "/fetch", {"want": [head, head], "have": have})
    expected = history.ancestry([head]) - history.ancestry(list(history.commits)[:10])
    assert {one["commit_id"] for one in told.body["commits"]} == expected


async def test_sixteen_clones_at_once_are_one_build(gateway: LiveGateway) -> None:
    me = await muse(gateway)
    history = make_history(4, commits=30, size_bytes=2000)
    await me.push(history)
    packs = await asyncio.gather(*(me.clone() for _ in range(16)))
    for pack in packs:
        check_whole(pack, history)
    row = await gateway.service.database.row(
        "SELECT count(*) AS packs FROM mpack_leases WHERE kind = 'pack'"
    )
    assert row["packs"] == 1


# Uploads. ----------------------------------------------------------------------------------------


async def presigned(me: Muse, object_ids: list[str]) -> dict[str, str]:
    told = (await me.call("POST", "/presign", {"object_ids": object_ids, "direction": "put"})).body
    assert told["inline"] == []
    urls: dict[str, str] = told["presigned"]
    return urls


async def durable(gateway: LiveGateway) -> int:
    row = await gateway.service.database.row("SELECT count(*) AS n FROM objects")
    return int(row["n"])


@pytest.mark.parametrize("sent", [b"other bytes", None], ids=["wrong", "absent"])
async def test_an_upload_without_its_bytes_fails_the_push(
    gateway: LiveGateway, sent: bytes | None
) -> None:
    me = await muse(gateway)
    history = History()
    history.commit({"large": history.content(bytes(LARGE_BYTES + 1))})
    (object_id,) = history.contents
    urls = await presigned(me, [object_id])
    if sent is not None:
        assert (await heard("PUT", urls[object_id], FORM, sent)).status == 200
    body = {"bundle": history.bundle(), "branch": "main", "force": False}
    refused = await me.call("POST", "/push", body)
    assert refused.status == 422
    assert object_id.encode() in refused.content
    assert (await me.refs())["branch_heads"] == {}
    assert await durable(gateway) == 0
    # The URL may be used again, and then the push goes through.
    await heard("PUT", urls[object_id], FORM, history.contents[object_id])
    assert (await me.call("POST", "/push", body)).body["ok"] is True
    check_whole(await me.clone(), history)


async def test_who_knows_an_id_alone_does_not_get_the_content(gateway: LiveGateway) -> None:
    """The object stands in another repo; an upload of other bytes must not open it."""
    history = seven_files()
    await (await muse(gateway, "ada/theirs")).push(history)
    thief = await muse(gateway, "eve/mine")
    (object_id,) = [key for key, data in history.contents.items() if len(data) > LARGE_BYTES]
    urls = await presigned(thief, [object_id])
    await heard("PUT", urls[object_id], FORM, b"guess")
    mine = History()
    mine.commit({"stolen": object_id})
    body = {"bundle": mine.bundle(), "branch": "main", "force": False}
    assert (await thief.call("POST", "/push", body)).status == 422


async def test_an_upload_that_nobody_claims_goes_at_its_deadline(
    database_url: str, tmp_path: Path
) -> None:
    lease = LeasePolicy(upload_limit_seconds=1, upload_margin_seconds=0.1, upload_grace_seconds=0.5)
    settings = settings_for(database_url, tmp_path / "data", lease=lease)
    view = view_of(tmp_path / "data")
    async with serving(settings) as gateway:
        me = await muse(gateway)
        object_id = hashlib.sha256(b"never claimed").hexdigest()
        urls = await presigned(me, [object_id])
        await heard("PUT", urls[object_id], FORM, b"never claimed")

        async def is_reclaimed() -> bool:
            row = await gateway.service.database.row(
                "SELECT kind, state, object_id FROM mpack_leases"
            )
            assert (row["kind"], row["object_id"]) == (LeaseKind.UPLOAD.value, object_id)
            return bool(row["state"] == "reclaimed")

        await until(is_reclaimed)
        assert view.is_empty()
        rows = await gateway.service.database.fetch(
            "SELECT type FROM events WHERE stream LIKE 'lease/%' ORDER BY position"
        )
        assert [row["type"] for row in rows] == ["lease.reserved", "lease.reclaimed"]
        assert (await heard("PUT", urls[object_id], FORM, b"too late")).status == 403


# What nobody may learn. --------------------------------------------------------------------------


async def test_a_private_repos_ids_cannot_be_told_from_absent_ones(gateway: LiveGateway) -> None:
    history = seven_files()
    repo_id = await gateway.repo("ada/hidden", private=True)
    await (await muse(gateway, "ada/hidden")).push(history)
    await (await muse(gateway, "eve/open")).push(other := make_history(9, commits=2))
    elsewhere = await gateway.token("push", repos=["eve/open"])
    hidden = next(iter(history.contents))
    for token in (elsewhere, None):
        reader = Muse(url=f"{gateway.url}/eve/open", token=token)
        home = Muse(url=gateway.url, token=token)
        for there, absent in ((hidden, "e" * 64), (history.head.commit_id, "d" * 64)):
            answers = []
            for one in (there, absent):
                told = [
                    await reader.call("POST", "/filter-objects", {"object_ids": [one]}),
                    await reader.call(
                        "POST", "/negotiate", {"want": [other.head.commit_id], "have": [one]}
                    ),
                    await reader.call("POST", "/fetch", {"want": [one], "have": []}),
                    await home.call("GET", f"/o/{one}?repo_id={repo_id}"),
                ]
                answers.append(
                    [(heard.status, masked(heard.content, one, heard.headers)) for heard in told]
                )
            assert [status for status, _ in answers[0]] == [200, 200, 404, 404]
            assert answers[0] == answers[1]


async def test_what_cannot_be_an_id_is_not_found(gateway: LiveGateway) -> None:
    me = await muse(gateway)
    history = make_history(9, commits=2)
    await me.push(history)
    head = history.head.commit_id
    for odd in ("\0" * 64, "a" * 63 + "\0", "ü" * 64):
        asked = {"want": [odd], "have": [head]}
        assert (await me.call("POST", "/negotiate", asked)).status == 404, odd
        asked = {"want": [head], "have": [odd, head]}
        assert (await me.call("POST", "/negotiate", asked)).body["ack"] == [head], odd
        assert (await me.call("POST", "/filter-objects", {"object_ids": [odd]})).status < 500, odd


def masked(content: bytes, object_id: str, headers: Any) -> bytes:
    shown = content.replace(object_id.encode(), b"*")
    return shown.replace(headers.get("x-request-id", "-").encode(), b"#")


# Names and single objects. -----------------------------------------------------------------------


async def test_single_objects(gateway: LiveGateway) -> None:
    me = await muse(gateway)
    history = seven_files()
    await me.push(history)
    repo_id = (await me.refs())["repo_id"]
    (large,) = [key for key, data in history.contents.items() if len(data) > LARGE_BYTES]
    content = history.contents[large]
    home = Muse(url=gateway.url)
    whole = await home.call("GET", f"/o/{large}?repo_id={repo_id}")
    assert (whole.status, whole.content) == (200, content)
    assert "immutable" in whole.headers["cache-control"]
    url = f"{gateway.url}/o/sha256:{large}?repo_id={repo_id}"
    part = await heard("GET", url, [("Range", "bytes=10-19")], None)
    assert (part.status, part.content) == (206, content[10:20])
    same = await heard("GET", url, [("If-None-Match", whole.headers["etag"])], None)
    assert same.status == 304
    assert (await home.call("GET", f"/o/{'0' * 64}?repo_id={repo_id}")).status == 404
    assert (await home.call("GET", f"/o/{large}")).status == 400

    asked = {"object_ids": sorted(history.contents), "direction": "get", "ttl_seconds": 60}
    told = (await me.call("POST", "/presign", asked)).body
    assert list(told["presigned"]) == [large]
    assert sorted(told["inline"]) == sorted(history.contents.keys() - {large})
    assert (await heard("GET", told["presigned"][large], [], None)).content == content
    asked["object_ids"] = ["0" * 64]
    assert (await me.call("POST", "/presign", asked)).status == 404


async def test_refs_tell_the_same_before_and_after_the_first_push(gateway: LiveGateway) -> None:
    me = await muse(gateway, "ada/new")
    before = await me.refs()
    history = make_history(9, commits=2)
    await me.push(history)
    assert await me.refs() == before | {"branch_heads": {"main": history.head.commit_id}}


async def test_tags_releases_and_the_end_of_a_branch(gateway: LiveGateway) -> None:
    me = await muse(gateway)
    history = seven_files()
    await me.push(history)
    head = history.head.commit_id
    tag = {"tag_id": "t1", "repo_id": "r", "commit_id": head, "tag": "v1", "created_at": "now"}
    assert (await me.call("POST", "/tags", {"tags": [tag, tag]})).body == {"stored": 1}
    assert (await me.call("POST", "/tags", {"tags": [tag]})).body == {"stored": 0}
    lost = {**tag, "commit_id": "0" * 64}
    assert (await me.call("POST", "/tags", {"tags": [lost]})).status == 422

    record = {"tag": "v1/beta", "release_id": "r1", "commit_id": head, "channel": "beta", "n": 1.5}
    draft = {"tag": "v2", "is_draft": True, "title": "ünfinished"}
    told = await me.call("POST", "/releases", record, as_json=True)
    assert told.body == {"release_id": "r1"}
    made = (await me.call("POST", "/releases", draft, as_json=True)).body["release_id"]
    assert (await me.call("POST", "/releases", draft, as_json=True)).body["release_id"] == made
    anybody = Muse(url=me.url)
    assert (await anybody.call("GET", "/releases")).body == {"releases": [record]}
    every = (await anybody.call("GET", "/releases?include_drafts=1")).body["releases"]
    assert {one["tag"] for one in every} == {"v1/beta", "v2"}
    assert (await anybody.call("GET", "/releases?channel=stable")).body == {"releases": []}
    much = ({"tag": "v" * 999}, {"tag": "v", "release_id": "r" * 999})
    for wrong in ({}, {"tag": ""}, {"tag": "a\0"}, {"tag": "v", "x": "\0"}, *much):
        answer = await me.call("POST", "/releases", wrong, as_json=True)
        assert answer.status == (413 if wrong in much else 422), answer
    assert (await anybody.call("DELETE", "/releases/v2")).status == 401
    assert (await me.call("DELETE", "/releases/v1/beta")).status == 200
    assert (await me.call("DELETE", "/releases/v1/beta")).status == 404

    await me.push(history, branch="gone")
    assert (await me.call("DELETE", "/branches/gone")).body == {"deleted": "gone", "head": head}
    assert (await me.call("DELETE", "/branches/gone")).status == 404
    assert (await me.refs())["branch_heads"] == {"main": head}
    check_whole(await me.clone(), history)


async def test_a_releases_numbers_come_back_whatever_their_size(gateway: LiveGateway) -> None:
    """PostgreSQL keeps 1e22 as a whole number, and gives back more digits than msgpack takes."""
    me = await muse(gateway)
    await me.push(seven_files())
    numbers = {"n": [1e22, -1e308, 2**64 - 1, -(2**63), 0.5], "of": {"n": 1e19}}
    for as_json in (False, True):
        record = {"tag": "v1", "release_id": "r1", **numbers}
        assert (await me.call("POST", "/releases", record, as_json=as_json)).status == 200
        assert (await me.call("GET", "/releases")).body == {"releases": [record]}
    beyond = await me.call("POST", "/releases", {"tag": "v2", "n": [2**64]}, as_json=True)
    assert (beyond.status, b"64 bits" in beyond.content) == (422, True), beyond


async def test_releases_are_bounded_together(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release in place of another is not one more."""
    monkeypatch.setattr(names_module, "RELEASES_MAX", 3)
    limits = WireLimits(body_bytes_max=100_000, ids_body_bytes_max=100_000, record_bytes_max=50_000)
    async with serving(settings_for(database_url, tmp_path / "data", wire=limits)) as gateway:
        me = await muse(gateway)
        await me.push(make_history(9, commits=1))

        async def release(tag: str, size_bytes: int) -> int:
            record = {"tag": tag, "notes": "x" * size_bytes}
            return (await me.call("POST", "/releases", record, as_json=True)).status

        assert await release("v1", 49_000) == 200
        assert await release("v2", 49_000) == 200
        assert await release("v3", 49_000) == 413
        assert await release("v1", 49_500) == 200
        assert await release("v3", 10) == 200
        assert await release("v4", 10) == 413
        assert await release("v3", 20) == 200
        assert (await me.call("DELETE", "/releases/v1")).status == 200
        assert await release("v4", 49_000) == 200
