"""The sync client's own HTTP ends every call as the library would, whatever the other side does."""

from __future__ import annotations

import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import httptools
import pytest

from gateway.client.library import LibraryHttp
from gateway.client.plain_http import PlainHttp, _Answer, _receive
from gateway.client.transport import Connection, Request

TIMEOUT_SECONDS = 10.0
Way = PlainHttp | LibraryHttp


class Sink:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.body = b""
        self.reason: str | None = None

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        self.status, self.headers = status, headers

    def feed(self, chunk: bytes) -> None:
        self.body += chunk

    def lost(self, reason: str) -> None:
        self.reason = reason


@contextmanager
def server(*answers: bytes, keep: bool = False) -> Iterator[tuple[str, list[bytes]]]:
    """A server that gives each connection its next answer, or one connection all of them."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            waiting = list(answers)
            while waiting:
                connection, _ = listening.accept()
                with connection:
                    for _ in range(len(waiting) if keep else 1):
                        asked.append(_read_request(connection))
                        connection.sendall(waiting.pop(0))

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", asked
        finally:
            thread.join(TIMEOUT_SECONDS)
            assert not thread.is_alive()


def _read_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            while len(body) < int(line.partition(b":")[2]):
                body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def plain() -> Way:
    return PlainHttp(timeout_seconds=TIMEOUT_SECONDS)


def library() -> Way:
    url = "http://127.0.0.1/a/b"
    return LibraryHttp(Connection(url, token=None, timeout_seconds=TIMEOUT_SECONDS))


def get(way: Way, url: str) -> Sink:
    sink = Sink()
    way.carry_out(Request("GET", url, {"Range": "bytes=1-"}, None), sink)
    return sink


HEAD = b"HTTP/1.1 200 OK\r\n"
ENDS = {
    "a length": (HEAD + b"Content-Length: 3\r\n\r\nabc", 200, b"abc", None),
    "chunks": (
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n",
        *(200, b"abc", None),
    ),
    "the connection's end": (HEAD + b"\r\nabc", 200, b"abc", None),
    "no body": (b'HTTP/1.1 304 Not Modified\r\nETag: "x"\r\n\r\n', 304, b"", None),
    "early hints": (
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + HEAD + b"Content-Length: 1\r\n\r\na",
        *(200, b"a", None),
    ),
    "a cut": (HEAD + b"Content-Length: 5\r\n\r\nabc", 200, b"abc", "connection broken"),
    "a cut chunk": (
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabc",
        *(200, b"abc", "connection broken"),
    ),
    "a cut head": (b"HTTP/1.1 200 OK\r\nContent", 0, b"", "connection broken"),
    "nothing": (b"", 0, b"", "connection broken"),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", 0, b"", "connection broken"),
    "a head without end": (HEAD + b"X: " + b"x" * 200_000, 0, b"", "connection broken"),
}


@pytest.mark.parametrize("make", [plain, library])
@pytest.mark.parametrize("answer, status, body, reason", ENDS.values(), ids=ENDS.keys())
def test_each_end_is_told_as_the_library_tells_it(
    make: Callable[[], Way], answer: bytes, status: int, body: bytes, reason: str | None
) -> None:
    way = make()
    with server(answer) as (url, asked):
        sink = get(way, url + "/x?y=1")
    way.close()
    assert (sink.status, sink.body, sink.reason) == (status, body, reason)
    assert asked[0].startswith(b"GET /x?y=1 HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"\r\nRange: bytes=1-\r\n" in asked[0]


class Dribble:
    """A connection that brings a byte at a time."""

    def __init__(self, data: bytes) -> None:
        self._left = data

    def recv_into(self, buffer: memoryview) -> int:
        first, self._left = self._left[:1], self._left[1:]
        buffer[: len(first)] = first
        return len(first)


@pytest.mark.parametrize("answer, status, body, reason", ENDS.values(), ids=ENDS.keys())
def test_an_answer_may_come_byte_by_byte(
    answer: bytes, status: int, body: bytes, reason: str | None
) -> None:
    sink = Sink()
    connection: Any = Dribble(answer)
    try:
        _receive(connection, _Answer(sink))
    except (ConnectionResetError, httptools.HttpParserError):
        sink.lost("connection broken")
    assert (sink.status, sink.body, sink.reason) == (status, body, reason)


@pytest.mark.parametrize("make", [plain, library])
def test_nobody_there_is_no_connection(make: Callable[[], Way]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
    assert get(make(), url).reason == "no connection"


def test_a_silent_server_is_a_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        assert get(PlainHttp(timeout_seconds=0.05), url).reason == "timeout"


def test_header_names_are_lower_case_and_repeated_ones_joined() -> None:
    way = plain()
    with server(HEAD + b"ETag: a\r\neTag: b\r\nContent-Length: 0\r\n\r\n") as (url, _):
        assert get(way, url + "/").headers["etag"] == "a, b"
    way.close()


def test_a_connection_is_used_again() -> None:
    answer = HEAD + b"Content-Length: 1\r\n\r\n"
    way = plain()
    with server(answer + b"a", answer + b"b", keep=True) as (url, asked):
        assert [get(way, url + "/").body for _ in range(2)] == [b"a", b"b"]
    assert len(asked) == 2
    way.close()


@pytest.mark.parametrize("told", [b"", b"Connection: close\r\n"])
def test_a_connection_that_has_ended_is_not(told: bytes) -> None:
    """Closed without a word, or announced: the next call finds a new one."""
    answer = HEAD + told + b"Content-Length: 1\r\n\r\na"
    way = PlainHttp(timeout_seconds=TIMEOUT_SECONDS)
    with server(answer, answer) as (url, asked):
        assert get(way, url + "/").reason is None
        for idle in way._idle.values():
            if idle:  # Until the end has come here, nobody can know of it.
                assert select.select(idle, [], [], TIMEOUT_SECONDS)[0]
        assert get(way, url + "/").reason is None
    assert len(asked) == 2
    way.close()


def test_a_body_is_sent_with_its_length() -> None:
    way, sink = plain(), Sink()
    with server(HEAD + b"Content-Length: 0\r\n\r\n") as (url, asked):
        way.carry_out(Request("POST", url + "/x", {"Authorization": "Bearer t"}, b"12345"), sink)
    assert asked[0].endswith(b"\r\nContent-Length: 5\r\n\r\n12345")
    assert b"\r\nAuthorization: Bearer t\r\n" in asked[0]
    way.close()


def test_what_the_sink_refuses_is_its_own_error() -> None:
    class Refusing(Sink):
        def feed(self, chunk: bytes) -> None:
            raise RuntimeError("no more")

    with server(HEAD + b"Content-Length: 1\r\n\r\na") as (url, _), pytest.raises(RuntimeError):
        plain().carry_out(Request("GET", url + "/", {}, None), Refusing())


@pytest.mark.parametrize(
    "url",
    ["https://h/x", "http://h/ü", "http://a@h/x", "http://h/x#y", "http://h/a b", "http://h/\r\nX"],
)
def test_odd_urls_are_left_to_the_library(url: str) -> None:
    assert not PlainHttp(timeout_seconds=1).takes(url)


def test_other_machines_are_reached_through_the_proxy_there_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.test:3128")
    way = PlainHttp(timeout_seconds=1)
    assert not way.takes("http://gateway.test/x")
    assert way.takes("http://127.0.0.1:8080/x")


def test_every_public_name_is_there_whatever_was_loaded_before() -> None:
    """A name that were also a module's would lead to the module once that is loaded."""
    code = """
import pkgutil
import gateway.client as client
for found in pkgutil.iter_modules(client.__path__, "gateway.client."):
    __import__(found.name)
assert all(type(getattr(client, name)).__name__ != "module" for name in client.__all__)
assert not hasattr(client, "nothing")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


_HEAVY = (
    *("asyncio", "httpx2", "logging", "sqlalchemy", "ssl", "starlette"),
    *("dataclasses", "inspect", "msgspec", "pathlib", "tempfile", "threading", "urllib.parse"),
)


def test_a_clone_loads_little() -> None:
    """A clone is over sooner than these are loaded."""
    names: Sequence[str] = _HEAVY
    code = f"""
import sys
from gateway.client import Client, unpack
with Client("http://127.0.0.1:1/a/b"):
    print([name for name in {names!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
