"""Which URLs need no library, and what their parts are."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from gateway.client import AsyncClient, Client
from gateway.client.errors import ClientError
from gateway.client.transport import Connection, PlainUrl

PLAIN = [
    "http://127.0.0.1:8080/me/project",
    "http://Gateway.Test/a/b?x=1&y=/2?3",
    "http://[::1]:9/a/b",
    "http://h/a/b?",
    "http://h:65535/",
]


@pytest.mark.parametrize("url", PLAIN)
def test_a_plain_url_has_the_parts_that_the_library_finds(url: str) -> None:
    plain, parts = PlainUrl.of(url), urlsplit(url)
    assert plain is not None
    assert (plain.place, plain.host, plain.path) == (parts.netloc, parts.hostname, parts.path)
    assert plain.port == (parts.port or 80)
    assert plain.target == parts.path + (f"?{parts.query}" if parts.query else "")


@pytest.mark.parametrize(
    "url",
    ["http://h:65536/a", "http://h:x/a", "http://h", "HTTP://h/a", "https://h/a", "http://[h]/a"],
)
def test_other_urls_are_not(url: str) -> None:
    assert PlainUrl.of(url) is None


@pytest.mark.parametrize("url", ["http://h/a/b/", "https://h:1/a/b?x=1", "HTTP://h/a/b"])
def test_a_repository_is_named_by_any_of_them(url: str) -> None:
    parts = urlsplit(url)
    expected = f"{parts.scheme}://{parts.netloc}/a/b"
    assert Connection(url, token=None, timeout_seconds=1).url == expected


@pytest.mark.parametrize("url", ["http://h/a", "ftp://h/a/b", "http://[h/a/b", "h/a/b", ""])
def test_what_names_no_repository_is_refused(url: str) -> None:
    with pytest.raises(ClientError, match="looks like"):
        Connection(url, token=None, timeout_seconds=1)


@pytest.mark.parametrize("url", ["http://h:x/a/b", "http://h\0/a/b", f"https://{'é' * 70}/a/b"])
async def test_what_no_library_can_ask_is_refused(url: str) -> None:
    with Client(url) as client, pytest.raises(ClientError, match="no URL"):
        client.refs()
    async with AsyncClient(url) as waiting:
        with pytest.raises(ClientError, match="no URL"):
            await waiting.refs()


@pytest.mark.parametrize("token", ["mpk_1\n", "mpk_1\r\nX-Other: 1", "mpk 1", "mpk_é"])
def test_a_token_that_is_no_header_is_refused_and_not_told(token: str) -> None:
    with pytest.raises(ClientError, match="A token is") as refused:
        Connection("http://h/a/b", token=token, timeout_seconds=1)
    assert "mpk" not in str(refused.value)
