"""What is the same for every call of one client, however it is carried out."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import urlsplit

from gateway.client.errors import ClientError, shown_url
from gateway.client.exchange import Call

CONNECT_SECONDS = 10.0


class Request(NamedTuple):
    """One HTTP request with all of its own headers."""

    method: str
    url: str
    headers: dict[str, str]
    body: bytes | None


class Connection:
    """The repository's URL, the token, and the limits of one client."""

    def __init__(self, url: str, *, token: str | None, timeout_seconds: float) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or len(parts.path.strip("/").split("/")) < 2:
            message = "A repository's URL looks like http://host/owner/repo"
            raise ClientError(f"{message}, not like {shown_url(url)}")
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self.timeout_seconds = timeout_seconds
        self._host = parts.hostname or ""
        self._token = token

    @property
    def is_local(self) -> bool:
        """Whether the gateway is on this machine."""
        return is_this_machine(self._host)

    def request(self, call: Call) -> Request:
        """One request; a presigned URL never sees the token."""
        headers = dict(call.headers)
        if call.private and self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        return Request(call.method, call.url, headers, call.body)


def is_this_machine(host: str) -> bool:
    """Whether a host's name says that it is this one."""
    if host in ("localhost", "127.0.0.1", "::1"):
        return True
    import ipaddress

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
