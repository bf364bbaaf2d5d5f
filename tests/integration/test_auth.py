"""Who may do what, over HTTP."""

from __future__ import annotations

import pytest

from leases.errors import InvalidRequest
from tests.factories import History
from tests.integration.gateways import LiveGateway, bundle_of

OTHER = "mpk_" + "0" * 48


def small_history() -> History:
    history = History()
    history.commit({"a.txt": history.content(b"a")})
    return history


@pytest.mark.parametrize(
    "scopes, repos, read_private, push_private, push_public, admin",
    [
        (None, None, 404, 401, 401, 401),
        (("read",), None, 200, 403, 403, 403),
        (("read",), ("o/private",), 200, 403, 403, 403),
        (("read",), ("o/else",), 404, 404, 403, 403),
        (("push",), None, 200, 200, 200, 403),
        (("push",), ("o/private",), 200, 200, 403, 403),
        (("push",), ("o/else",), 404, 404, 403, 403),
        (("admin",), None, 200, 200, 200, 200),
    ],
    ids=[
        "nobody", "read", "read-this", "read-other", "push", "push-this", "push-other", "admin",
    ],
)  # fmt: skip
async def test_scopes_and_restrictions_decide(
    live_gateway: LiveGateway,
    scopes: tuple[str, ...] | None,
    repos: tuple[str, ...] | None,
    read_private: int,
    push_private: int,
    push_public: int,
    admin: int,
) -> None:
    await live_gateway.repo("o/private", private=True)
    await live_gateway.repo("o/public")
    token = None if scopes is None else await live_gateway.token(*scopes, repos=repos)
    bundle = bundle_of(small_history())
    bundle["objects"] = [
        {"object_id": key, "content": value} for key, value in small_history().contents.items()
    ]
    push = {"bundle": bundle, "branch": "main"}
    calls = [
        ("GET", "/o/private/refs", None, read_private),
        ("GET", "/o/public/refs", None, 200),
        ("POST", "/o/private/push", push, push_private),
        ("POST", "/o/public/push", push, push_public),
        ("GET", "/v1/leases", None, admin),
        ("GET", "/v1/events", None, admin),
    ]
    got = [await live_gateway.call(m, path, body, token=token) for m, path, body, _ in calls]
    assert [answer.status for answer in got] == [status for *_, status in calls]


@pytest.mark.parametrize("method, call", [("GET", "refs"), ("POST", "fetch"), ("POST", "push")])
async def test_a_private_repo_answers_like_an_absent_one(
    live_gateway: LiveGateway, method: str, call: str
) -> None:
    await live_gateway.repo("o/private", private=True)
    token = await live_gateway.token("push", repos=["o/else"])
    for secret in (None, token):
        hidden, absent = [
            await live_gateway.call(
                method,
                f"/o/{name}/{call}",
                None if method == "GET" else b"\x80",
                token=secret,
                headers={"X-Request-Id": "same"},
            )
            for name in ("private", "absent")
        ]
        assert (hidden.status, hidden.body) == (absent.status, absent.body)


@pytest.mark.parametrize(
    "header",
    [f"Bearer {OTHER}", "Bearer", "Bearer x", "Basic YTpi", "", "Bearer \xff"],
    ids=["unknown", "empty", "short", "basic", "nothing", "bytes"],
)
async def test_a_bad_token_is_401_everywhere(live_gateway: LiveGateway, header: str) -> None:
    await live_gateway.repo("o/public")
    for path in ("/o/public/refs", "/o/absent/refs", "/v1/leases"):
        response = await live_gateway.http.get(
            live_gateway.url + path, headers={b"Authorization": header.encode("latin-1")}
        )
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json()["message"] == "This token is not valid."


async def test_a_revoked_and_an_expired_token_are_refused_alike(live_gateway: LiveGateway) -> None:
    tokens, database = live_gateway.service.tokens, live_gateway.service.database
    secret = await live_gateway.token("admin")
    assert (await live_gateway.call("GET", "/v1/leases", token=secret)).status == 200
    await database.execute("UPDATE api_tokens SET expires_at = clock_timestamp()")
    expired = await live_gateway.call("GET", "/v1/leases", token=secret)
    row = await database.row("UPDATE api_tokens SET expires_at = NULL RETURNING token_id")
    await tokens.revoke(row["token_id"])
    revoked = await live_gateway.call("GET", "/v1/leases", token=secret)
    assert expired.status == revoked.status == 401
    assert expired.body["message"] == revoked.body["message"]


async def test_the_last_use_is_noted_at_most_once_a_minute(live_gateway: LiveGateway) -> None:
    secret = await live_gateway.token("admin")
    look = "SELECT last_used_at FROM api_tokens"

    async def noted() -> object:
        await live_gateway.call("GET", "/v1/leases", token=secret)
        row = await live_gateway.service.database.row(look)
        return row["last_used_at"]

    first = await noted()
    assert first is not None
    assert await noted() == first
    await live_gateway.service.database.execute(
        "UPDATE api_tokens SET last_used_at = last_used_at - interval '61 seconds'"
    )
    assert await noted() != first


async def test_the_table_holds_no_secret(live_gateway: LiveGateway) -> None:
    secret = await live_gateway.token("read")
    rows = await live_gateway.service.database.fetch("SELECT t::text AS row FROM api_tokens t")
    assert secret not in rows[0]["row"]
    assert secret.removeprefix("mpk_") not in rows[0]["row"]


async def test_the_first_push_makes_the_repo(live_gateway: LiveGateway) -> None:
    token = await live_gateway.token("push", repos=["me/new"])
    answer = await live_gateway.push("me/new", small_history(), token=token)
    assert answer.status == 200, answer.body
    refs = await live_gateway.call("GET", "/me/new/refs")
    assert refs.body["default_branch"] == "main"
    assert list(refs.body["branch_heads"]) == ["main"]
    assert refs.body["repo_id"]


async def test_a_restricted_token_makes_no_other_repo(live_gateway: LiveGateway) -> None:
    token = await live_gateway.token("push", repos=["me/new"])
    answer = await live_gateway.push("me/other", small_history(), token=token)
    assert answer.status == 404
    assert await live_gateway.service.repos.find(owner="me", slug="other") is None


@pytest.mark.parametrize("name", ["o", "/r", "o/", "o/r/s", "o/r.git", "v1/r", "o/a b"])
async def test_a_token_is_good_only_for_what_can_be_a_repo(
    live_gateway: LiveGateway, name: str
) -> None:
    """Else it would be good for nothing, and nobody would say so."""
    with pytest.raises(InvalidRequest, match="owner/slug"):
        await live_gateway.token("push", repos=[name])
