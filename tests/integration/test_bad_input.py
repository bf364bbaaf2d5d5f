"""Bad input: a 4xx with a sentence, nothing stored, the branch where it was, never a 500."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgpack
import pytest

from tests.factories import History
from tests.integration.gateways import Answer, LiveGateway, bundle_of

UNKNOWN = "f" * 64
Bundle = dict[str, Any]


def history_of(*contents: bytes) -> History:
    history = History()
    parents: list[Any] = []
    for number, content in enumerate(contents):
        parents = [history.commit({f"{number}.txt": history.content(content)}, parents=parents)]
    return history


@dataclass(frozen=True, slots=True)
class Scene:
    """A gateway with one pushed repo."""

    gateway: LiveGateway
    token: str
    head: str

    async def post(self, path: str, body: object, **more: Any) -> Answer:
        return await self.gateway.call("POST", f"/o/r/{path}", body, token=self.token, **more)

    async def counts(self) -> dict[str, int]:
        row = await self.gateway.service.database.row(
            "SELECT (SELECT count(*) FROM objects) AS objects,"
            " (SELECT count(*) FROM segments) AS segments,"
            " (SELECT count(*) FROM commits) AS commits,"
            " (SELECT count(*) FROM snapshots) AS snapshots,"
            " (SELECT count(*) FROM mpack_leases) AS leases,"
            " (SELECT count(*) FROM events) AS events"
        )
        return dict(row)


@pytest.fixture
async def scene(live_gateway: LiveGateway) -> Scene:
    token = await live_gateway.token("push")
    answer = await live_gateway.push("o/r", history_of(b"first"), token=token)
    assert answer.status == 200, answer.body
    return Scene(live_gateway, token, answer.body["branch_heads"]["main"])


async def check_refused(
    scene: Scene, path: str, body: object, *, statuses: set[int], **more: Any
) -> Answer:
    before = await scene.counts()
    answer = await scene.post(path, body, **more)
    assert answer.status in statuses, answer.body
    assert 10 < len(answer.body["message"]) < 400
    assert answer.body["code"]
    assert answer.body["request_id"] == answer.headers["x-request-id"]
    assert await scene.counts() == before
    refs = await scene.gateway.call("GET", "/o/r/refs")
    assert refs.body["branch_heads"] == {"main": scene.head}
    return answer


def changed(change: Callable[[Bundle], object]) -> Callable[[], Bundle]:
    """A push of one new commit whose bundle is then spoiled."""

    def make() -> Bundle:
        history = history_of(b"first", b"second")
        bundle = bundle_of(history)
        bundle["objects"] = [
            {"object_id": key, "content": content} for key, content in history.contents.items()
        ]
        change(bundle)
        return {"bundle": bundle, "branch": "main"}

    return make


def traversal(path: str) -> Callable[[], Bundle]:
    def make() -> Bundle:
        history = history_of(b"first")
        (root,) = history.commits.values()
        history.commit({path: history.content(b"second")}, parents=[root])
        bundle = bundle_of(history)
        bundle["objects"] = [
            {"object_id": key, "content": content} for key, content in history.contents.items()
        ]
        return {"bundle": bundle, "branch": "main"}

    return make


PUSHES: dict[str, Callable[[], Bundle]] = {
    "absent object": changed(lambda bundle: bundle["objects"].clear()),
    "wrong hash": changed(lambda bundle: bundle["objects"][1].update(content=b"other")),
    "dangling parent": changed(
        lambda bundle: bundle["commits"][1].update(parent_commit_id=UNKNOWN)
    ),
    "absent snapshot": changed(lambda bundle: bundle["snapshots"].pop()),
    "wrong commit id": changed(lambda bundle: bundle["commits"][1].update(message="other")),
    "wrong snapshot id": changed(
        lambda bundle: bundle["snapshots"][1].update(manifest={"x": "0" * 64})
    ),
    "no commit": changed(lambda bundle: bundle.update(commits=[], snapshots=[])),
    "path up": traversal("../../etc/passwd"),
    "path absolute": traversal("/etc/passwd"),
    "path dot": traversal("a/./b"),
    "path empty segment": traversal("a//b"),
}


@pytest.mark.parametrize("make", PUSHES.values(), ids=PUSHES.keys())
async def test_a_spoiled_push_changes_nothing(
    scene: Scene, make: Callable[[], Bundle], request: pytest.FixtureRequest
) -> None:
    await check_refused(scene, "push", make(), statuses={400, 422})


@pytest.mark.parametrize(
    "branch", ["", "../main", "a b", "main\0", "x" * 300, "-x", "a..b", "refs/heads/"], ids=repr
)
async def test_a_branch_needs_a_sane_name(scene: Scene, branch: str) -> None:
    body = changed(lambda _bundle: None)() | {"branch": branch}
    await check_refused(scene, "push", body, statuses={400, 413, 422})


async def test_a_push_beside_the_head_is_409(scene: Scene) -> None:
    history = history_of(b"other")
    bundle = bundle_of(history)
    bundle["objects"] = [
        {"object_id": key, "content": content} for key, content in history.contents.items()
    ]
    answer = await scene.post("push", {"bundle": bundle, "branch": "main"})
    assert (answer.status, answer.body["code"]) == (409, "non_fast_forward")
    refs = await scene.gateway.call("GET", "/o/r/refs")
    assert refs.body["branch_heads"] == {"main": scene.head}


async def test_an_object_under_a_wrong_id_is_refused(scene: Scene) -> None:
    body = {"objects": [{"object_id": UNKNOWN, "content": b"x"}]}
    await check_refused(scene, "push/objects", body, statuses={422})


HOSTILE = {
    "nothing": b"",
    "truncated": msgpack.packb({"want": ["a" * 64]})[:-10],
    "list": b"\x90",
    "number": b"\x01",
    "text": b"not msgpack at all",
    "huge array": b"\x81\xa4want\xdd\xff\xff\xff\xff",
    "huge map": b"\xdf\xff\xff\xff\xff",
    "huge bin": b"\x81\xa4want\xc6\xff\xff\xff\xff",
    "deep": b"\x91" * 100_000,
    "trailing": msgpack.packb({"want": []}) + b"\0",
    "ext": b"\xc7\x00\x05",
    "reserved": b"\xc1",
    "wrong type": msgpack.packb({"want": "abc"}),
    "bad id": msgpack.packb({"want": ["../" + "a" * 61]}),
    "nul id": msgpack.packb({"want": ["\0" * 64]}),
    "integer keys": msgpack.packb({1: 2}),
    "bad utf-8": b"\x81\xa4want\x91\xd9\x40" + b"\xff" * 64,
}


@pytest.mark.parametrize("call", ["push", "push/objects", "fetch", "fetch/mpack", "filter-objects"])
@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
async def test_hostile_msgpack_is_refused(scene: Scene, call: str, body: bytes) -> None:
    # What is no id at all is a want like any other that nobody knows.
    await check_refused(scene, call, body, statuses={400, 404, 413, 422})


@pytest.mark.parametrize("call", ["fetch", "fetch/mpack"])
async def test_an_unknown_want_is_404(scene: Scene, call: str) -> None:
    await check_refused(scene, call, {"want": [UNKNOWN], "have": []}, statuses={404})


@pytest.mark.parametrize(
    "ttl", [0, -1, math.nan, math.inf, -math.inf, 86_401, 1e300, 0.5, "300", [300], True], ids=repr
)
async def test_a_ttl_has_bounds(scene: Scene, ttl: object) -> None:
    body = {"want": [scene.head], "have": [], "ttl_seconds": ttl}
    await check_refused(scene, "fetch/mpack", body, statuses={400, 422})


async def test_a_list_over_its_limit_is_413(scene: Scene) -> None:
    have = [f"{number:064x}" for number in range(100_001)]
    body = {"want": [scene.head], "have": have}
    await check_refused(scene, "fetch/mpack", body, statuses={413})


async def test_another_media_type_is_415(scene: Scene) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    await check_refused(scene, "fetch", b"want=a", statuses={415}, headers=headers)


@pytest.mark.parametrize(
    "path",
    ["/o/../refs", "/o/%2e%2e/refs", "/%00/r/refs", "/o/..%2fr/refs", "/o/.git/refs", "/o/r/refs/"],
)
async def test_a_strange_address_is_404(scene: Scene, path: str) -> None:
    answer = await scene.gateway.call("GET", path, headers={"Accept": "application/json"})
    assert answer.status == 404
    assert answer.body["code"] in ("not_found", "repo_missing")


async def test_another_method_is_405(scene: Scene) -> None:
    answer = await scene.gateway.call("PUT", "/o/r/refs")
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")
    assert answer.body["code"] == "method_not_allowed"
