"""The client against a real gateway: push, fetch, download through cuts and expiries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from gateway.client import AccessDenied, AsyncClient, Client, Diverged, Missing, checkout, unpack
from gateway.git_import import GitHistory
from leases.lessor import Caller
from leases.model import Trigger
from tests.client_fakes import SentHistory
from tests.cutting_proxy import CuttingProxy
from tests.factories import make_history
from tests.git_repositories import EXECUTABLE, LINK, GitRepository
from tests.integration.gateways import LiveGateway, serving, settings_for
from tests.rgw import server
from tests.stores import ON_S3, s3_of

REPO = "ada/project"
MakeClient = Callable[[], AsyncClient]


@pytest.fixture
async def token(live_gateway: LiveGateway) -> str:
    return await live_gateway.token("push")


@pytest.fixture
async def client(live_gateway: LiveGateway, token: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(f"{live_gateway.url}/{REPO}", token=token) as client:
        yield client


async def test_a_history_goes_in_and_comes_back(client: AsyncClient, tmp_path: Path) -> None:
    made = make_history(1, commits=30)
    history = SentHistory(made)
    pushed = await client.push(history, branch="main")
    assert (pushed.commits, pushed.objects) == (30, len(made.contents))
    assert (await client.refs()).branch_heads == {"main": history.head}
    for encoding in (None, "zstd"):
        answer = await client.fetch_mpack([history.head], encoding=encoding)
        with await client.download(answer) as got, unpack(got.path) as pack:
            assert set(pack.commits) == set(made.commits)
            assert {oid: pack.content(oid) for oid in pack.objects} == made.contents


async def test_pushing_again_sends_nothing_and_going_on_sends_the_rest(client: AsyncClient) -> None:
    made = make_history(2, commits=20)
    early = next(iter(made.commits))
    part = SentHistory(made)
    part.head = early
    part.parents = {early: part.parents[early]}
    await client.push(part, branch="main")
    rest = await client.push(SentHistory(made), branch="main")
    assert rest.commits == 19
    assert (await client.push(SentHistory(made), branch="main")).up_to_date
    branch = await client.push(SentHistory(made), branch="other")
    assert (branch.commits, branch.objects) == (1, 0)
    with pytest.raises(Diverged):
        await client.push(SentHistory(make_history(3, commits=3)), branch="main")


async def test_only_what_is_lacking_comes_back(client: AsyncClient) -> None:
    made = make_history(4, commits=20, merges=False)
    await client.push(SentHistory(made), branch="main")
    base = list(made.commits)[14]
    answer = await client.fetch_mpack([made.head.commit_id], [base])
    with await client.download(answer) as got, unpack(got.path) as pack:
        assert set(pack.commits) == set(list(made.commits)[15:])


async def test_a_git_repository_survives_the_round_trip(
    live_gateway: LiveGateway, token: str, tmp_path: Path
) -> None:
    """The sync client, from threads, as the command line uses it."""
    with GitRepository(tmp_path / "git") as git:
        git.commit({b"a": b"one", b"caf\xe9/x": b"two", b"empty": b""})
        git.commit(
            {b"a": b"1", b"run": (EXECUTABLE, b"#!"), b"link": (LINK, b"a"), b"empty": b""},
            message=b"\xff\x00 odd\n",
        )

    def round_trip() -> None:
        with (
            GitHistory.open(tmp_path / "git") as history,
            Client(f"{live_gateway.url}/{REPO}", token=token) as client,
        ):
            client.push(history, branch="main")
            answer = client.fetch_mpack([history.head])
            with client.download(answer) as got, unpack(got.path) as pack:
                assert checkout(pack, history.head, tmp_path / "out") == 4

    await asyncio.to_thread(round_trip)
    out = tmp_path / "out"
    assert (out / "a").read_bytes() == b"1"
    assert (out / "empty").read_bytes() == b""
    assert (out / "link").readlink() == Path("a")
    assert (out / "run").stat().st_mode & 0o111


async def test_the_gateways_own_words_reach_the_user(
    live_gateway: LiveGateway, client: AsyncClient
) -> None:
    await client.push(SentHistory(make_history(5, commits=2)), branch="main")
    with pytest.raises(Missing):
        await client.fetch_mpack(["f" * 64])
    stranger = AsyncClient(f"{live_gateway.url}/{REPO}", token="mpk_" + "0" * 48)
    async with stranger:
        with pytest.raises(AccessDenied, match="token is not valid"):
            await stranger.refs()


async def test_an_expired_url_is_fetched_anew_once(
    live_gateway: LiveGateway, client: AsyncClient
) -> None:
    history = SentHistory(make_history(6, commits=3))
    await client.push(history, branch="main")
    answer = await client.fetch_mpack([history.head])
    assert answer.mpack_id is not None
    engine = live_gateway.service.engine
    await engine.lessor.revoke(answer.mpack_id, reason="test", caller=Caller(actor="test"))
    await engine.reaper.sweep(Trigger.COMMAND)
    with await client.download(answer) as got:
        assert got.fetched_anew
        assert got.answer.mpack_id != answer.mpack_id


@asynccontextmanager
async def behind(
    proxy: CuttingProxy, database_url: str, folder: Path
) -> AsyncIterator[tuple[LiveGateway, AsyncClient]]:
    async with proxy:
        if ON_S3:
            s3 = replace(s3_of(folder), s3_public_endpoint=proxy.url)
            settings = replace(settings_for(database_url, folder), s3=s3)
        else:
            settings = settings_for(database_url, folder, public_url=proxy.url)
        async with serving(settings) as gateway:
            proxy.target_port = server().port if ON_S3 else gateway.port
            token = await gateway.token("push")
            async with AsyncClient(f"{gateway.url}/{REPO}", token=token) as client:
                yield gateway, client


async def test_a_download_that_is_cut_goes_on_where_it_stopped(
    database_url: str, tmp_path: Path
) -> None:
    proxy = CuttingProxy([50_000, 150_000, 5])
    history = SentHistory(make_history(7, commits=5, size_bytes=100_000))
    async with behind(proxy, database_url, tmp_path / "data") as (_gateway, client):
        await client.push(history, branch="main")
        answer = await client.fetch_mpack([history.head])
        assert urlsplit(answer.mpack_url or "").port == proxy.port
        with await client.download(answer) as got, unpack(got.path) as pack:
            assert set(pack.commits) == set(history.parents)
    assert (got.attempts, got.resumed) == (4, 2)
    assert b"range: bytes=" not in proxy.downloads[0].lower()
    assert all(b"range: bytes=" in head.lower() for head in proxy.downloads[1:])
    assert all(b"if-range:" in head.lower() for head in proxy.downloads[1:])
    assert all(b"authorization" not in head.lower() for head in proxy.downloads)
