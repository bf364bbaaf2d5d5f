"""HTTP/1.1 over plain sockets: what a clone from this machine or network needs, and no more.

A program that only clones would spend more time on loading the HTTP library than on the clone. So
calls without TLS and without a proxy go this way, parsed by the parser that the server itself uses;
everything else is the library's. Both end the same: an answer in the sink, or the reason why not.
"""

from __future__ import annotations

import select
import socket
from _thread import allocate_lock  # All of `threading` that is needed, and what it gives away.

import httptools

from gateway.client.exchange import CALLS_AT_ONCE_MAX, Sink
from gateway.client.transport import CONNECT_SECONDS, PlainUrl, Request, is_this_machine

_READ_BYTES = 64 * 1024  # What the allocator keeps at hand; more are fresh pages for each answer.
_HEAD_BYTES_MAX = 64 * 1024
_JOINED_BYTES_MAX = 64 * 1024


class PlainHttp:
    """Connections without TLS, kept for the next call. Safe to use from several threads."""

    def __init__(self, *, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._lock = allocate_lock()
        self._idle: dict[str, list[socket.socket]] = {}
        self._is_direct: dict[str, bool] = {}

    def takes(self, url: str) -> bool:
        """Whether a call to this URL can go this way."""
        plain = PlainUrl.of(url)
        if plain is None:
            return False
        host = plain.host
        if host not in self._is_direct:
            self._is_direct[host] = is_this_machine(host) or _no_proxies()
        return self._is_direct[host]

    def carry_out(self, request: Request, sink: Sink) -> None:
        """Send one request; the answer goes into the sink."""
        url = PlainUrl.of(request.url)
        assert url is not None, "`takes` was asked"
        try:
            connection = self._reused(url.place) or self._connected(url)
        except TimeoutError:
            sink.lost("timeout")
            return
        except OSError:
            sink.lost("no connection")
            return
        reusable = False
        try:
            _send(connection, request, url)
            reusable = _receive(connection, _Answer(sink))
        except TimeoutError:
            sink.lost("timeout")
        except (OSError, httptools.HttpParserError):
            sink.lost("connection broken")
        finally:
            if not (reusable and self._kept(url.place, connection)):
                connection.close()

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            idle = [one for connections in self._idle.values() for one in connections]
            self._idle.clear()
        for connection in idle:
            connection.close()

    def _reused(self, place: str) -> socket.socket | None:
        with self._lock:
            connections = self._idle.get(place, [])
            while connections:
                connection = connections.pop()
                # Readable without a question: the other side has closed it meanwhile.
                if not select.select([connection], [], [], 0)[0]:
                    return connection
                connection.close()
        return None

    def _connected(self, url: PlainUrl) -> socket.socket:
        connection = socket.create_connection((url.host, url.port), timeout=CONNECT_SECONDS)
        connection.settimeout(self._timeout_seconds)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _kept(self, place: str, connection: socket.socket) -> bool:
        with self._lock:
            connections = self._idle.setdefault(place, [])
            if len(connections) >= CALLS_AT_ONCE_MAX:
                return False
            connections.append(connection)
            return True


def _send(connection: socket.socket, request: Request, url: PlainUrl) -> None:
    headers = {"Host": url.place, "Accept": "*/*", **request.headers}
    body = request.body or b""
    if body or request.method in ("POST", "PUT"):
        headers["Content-Length"] = str(len(body))
    lines = [f"{request.method} {url.target} HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items())]
    head = "\r\n".join([*lines, "", ""]).encode("latin-1")
    try:
        if len(body) <= _JOINED_BYTES_MAX:
            connection.sendall(head + body)  # The server wakes up once.
        else:
            connection.sendall(head)
            connection.sendall(body)
    except (BrokenPipeError, ConnectionResetError):
        # It may have answered without reading to the end; that answer is worth having.
        return


def _receive(connection: socket.socket, answer: _Answer) -> bool:
    """Read one answer into its sink; whether the connection is good for another one."""
    buffer = memoryview(bytearray(_READ_BYTES))
    while not answer.complete:
        count = connection.recv_into(buffer)
        if not count:
            if not answer.ends_with_connection:
                raise ConnectionResetError
            return False
        answer.take(buffer[:count])
    return answer.leaves_connection


class _Answer:
    """One answer on its way through the parser, which calls the `on_` methods.

    They only collect: an error of the sink is not the parser's.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._status = self._head_bytes = 0
        self._begun = False
        self._body: list[bytes] = []
        self.complete = self.leaves_connection = False

    @property
    def ends_with_connection(self) -> bool:
        """Whether the end of the connection is the answer's end and not a cut."""
        told = self._headers.keys() & {"content-length", "transfer-encoding"}
        return self._begun and not told

    def take(self, data: memoryview) -> None:
        """What came over the connection; the sink is given what it means.

        Errors: ConnectionResetError for a head without end; HttpParserError.
        """
        self._parser.feed_data(data)
        if not self._begun:
            self._head_bytes += len(data)
            if not self._status:
                if self._head_bytes > _HEAD_BYTES_MAX:
                    raise ConnectionResetError
                return
            self._begun = True
            self._sink.begin(self._status, self._headers)
        body, self._body = self._body, []
        for piece in body:
            self._sink.feed(piece)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header line."""
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        self._headers[key] = f"{self._headers[key]}, {text}" if key in self._headers else text

    def on_headers_complete(self) -> None:
        """A head is here; it may be that of an interim answer, before the one that counts."""
        status = self._parser.get_status_code()
        if status >= 200:
            self._status = status
        else:
            self._headers = {}

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        self._body.append(data)

    def on_message_complete(self) -> None:
        """The last byte is here. The parser forgets the answer as soon as this returns."""
        if self._status:
            self.complete = True
            self.leaves_connection = bool(self._parser.should_keep_alive())


def _no_proxies() -> bool:
    # Loaded only for other machines: it is most of what this module is there to avoid.
    from urllib.request import getproxies

    return not getproxies()
