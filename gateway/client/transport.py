"""What both clients tell the HTTP library."""

from __future__ import annotations

import ipaddress
import logging
from typing import Any
from urllib.parse import urlsplit

import httpx2

from gateway.client.errors import ClientError, shown_url
from gateway.client.exchange import CALLS_AT_ONCE_MAX, Call

_CONNECT_SECONDS = 10.0


class Connection:
    """The repository's URL, the token, and the limits of one client."""

    def __init__(self, url: str, *, token: str | None, timeout_seconds: float) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or len(parts.path.strip("/").split("/")) < 2:
            message = "A repository's URL looks like http://host/owner/repo"
            raise ClientError(f"{message}, not like {shown_url(url)}")
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._host = parts.hostname or ""
        self._token = token
        self._timeout_seconds = timeout_seconds
        _hush(logging.getLogger("httpx2"))
        _hush(logging.getLogger("httpcore2"))

    def options(self) -> dict[str, Any]:
        """The HTTP library's settings: no redirects; a proxy only towards other machines."""
        return {
            "timeout": httpx2.Timeout(self._timeout_seconds, connect=_CONNECT_SECONDS),
            "limits": httpx2.Limits(max_connections=CALLS_AT_ONCE_MAX),
            "follow_redirects": False,
            "trust_env": not _is_this_machine(self._host),
        }

    def request(self, call: Call) -> dict[str, Any]:
        """One request as the HTTP library takes it; a presigned URL never sees the token."""
        headers = dict(call.headers)
        if call.private and self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        return {"method": call.method, "url": call.url, "headers": headers, "content": call.body}


def lost_because(error: httpx2.TransportError) -> str:
    """Why an answer did not come, in words that cannot hold a URL."""
    if isinstance(error, httpx2.TimeoutException):
        return "timeout"
    if isinstance(error, httpx2.ConnectError):
        return "no connection"
    return "connection broken"


def _is_this_machine(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _hush(logger: logging.Logger) -> None:
    """The library logs whole URLs at INFO and DEBUG, a presigned one with its signature."""
    logger.setLevel(max(logger.level, logging.WARNING))
