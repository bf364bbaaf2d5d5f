"""What both clients tell the HTTP library; the calls of the sync one that need it."""

from __future__ import annotations

import logging
from typing import Any

import httpx2

from gateway.client.errors import ClientError
from gateway.client.exchange import CALLS_AT_ONCE_MAX, Sink
from gateway.client.transport import CONNECT_SECONDS, Connection, Request


class LibraryHttp:
    """The HTTP library behind the same calls as `PlainHttp`: for TLS, proxies and odd URLs."""

    def __init__(self, connection: Connection) -> None:
        self._http = httpx2.Client(**options(connection))

    def carry_out(self, request: Request, sink: Sink) -> None:
        """Send one request; the answer goes into the sink."""
        try:
            with self._http.stream(**arguments(request)) as response:
                sink.begin(response.status_code, response.headers)
                # As it arrives: whatever waited for a full chunk would be lost with a cut.
                for chunk in response.iter_raw():
                    sink.feed(chunk)
        except httpx2.TransportError as error:
            sink.lost(lost_because(error))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()


def options(connection: Connection) -> dict[str, Any]:
    """The library's settings: no redirects; a proxy only towards other machines."""
    for name in ("httpx2", "httpcore2"):
        _hush(logging.getLogger(name))
    return {
        "timeout": httpx2.Timeout(connection.timeout_seconds, connect=CONNECT_SECONDS),
        "limits": httpx2.Limits(max_connections=CALLS_AT_ONCE_MAX),
        "follow_redirects": False,
        "trust_env": not connection.is_local,
    }


def arguments(request: Request) -> dict[str, Any]:
    """One request as the library takes it.

    Errors: ClientError for a URL that it cannot read.
    """
    try:
        url = httpx2.URL(request.url)
    except httpx2.InvalidURL:  # Its words may quote the URL.
        raise ClientError("This is no URL that one can ask.") from None
    return {
        "method": request.method,
        "url": url,
        "headers": request.headers,
        "content": request.body,
    }


def lost_because(error: httpx2.TransportError) -> str:
    """Why an answer did not come, in words that cannot hold a URL."""
    if isinstance(error, httpx2.TimeoutException):
        return "timeout"
    if isinstance(error, httpx2.ConnectError):
        return "no connection"
    return "connection broken"


def _hush(logger: logging.Logger) -> None:
    """The library logs whole URLs at INFO and DEBUG, a presigned one with its signature."""
    logger.setLevel(max(logger.level, logging.WARNING))
