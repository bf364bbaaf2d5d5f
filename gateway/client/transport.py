"""What is the same for every call of one client, however it is carried out."""

from __future__ import annotations

import re

from gateway.client.errors import ClientError, shown_url
from gateway.client.exchange import Call
from gateway.client.value import Value

CONNECT_SECONDS = 10.0
# What needs no rewriting on its way into a request. Every other URL is left to the libraries, which
# take longer to load than most calls take.
_PLAIN_URL = re.compile(
    r"http://(([A-Za-z0-9._\-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?)"
    r"(/[A-Za-z0-9._~:/@!$&'()*+,;=%\-]*)(?:\?([A-Za-z0-9._~:/?@!$&'()*+,;=%\-]*))?\Z"
)

# What a header can carry as it stands. A token that was read from a file may end with a line's end,
# and what stands behind that would be read as a header, or as the next request.
_TOKEN = re.compile(r"[!-~]*\Z")


class PlainUrl(Value):
    """A URL without TLS, user, fragment or anything that must be escaped.

    Shapes:  place: host and port as they stand in the URL; target: path and query.
    """

    place: str
    host: str
    port: int
    path: str
    target: str

    @classmethod
    def of(cls, url: str) -> PlainUrl | None:
        """This URL's parts; None for one that is not so simple."""
        found = _PLAIN_URL.match(url)
        if found is None:
            return None
        place, host, told_port, path, query = found.groups()
        port = int(told_port or 80)
        if port > 65_535:
            return None
        target = f"{path}?{query}" if query else path
        return cls(place, host.strip("[]").lower(), port, path, target)


class Request(Value):
    """One HTTP request with all of its own headers."""

    method: str
    url: str
    headers: dict[str, str]
    body: bytes | None


class Connection:
    """The repository's URL, the token, and the limits of one client."""

    def __init__(self, url: str, *, token: str | None, timeout_seconds: float) -> None:
        scheme, place, host, path = _parts(url)
        if scheme not in ("http", "https") or len(path.strip("/").split("/")) < 2:
            message = "A repository's URL looks like http://host/owner/repo"
            raise ClientError(f"{message}, not like {shown_url(url)}")
        if token is not None and _TOKEN.match(token) is None:
            raise ClientError("A token is of ASCII letters, without spaces or line ends.")
        self.url = f"{scheme}://{place}{path.rstrip('/')}"
        self.timeout_seconds = timeout_seconds
        self._host = host
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


def _parts(url: str) -> tuple[str, str, str, str]:
    """Scheme, host with port, host, and path."""
    plain = PlainUrl.of(url)
    if plain is not None:
        return "http", plain.place, plain.host, plain.path
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
    except ValueError:
        raise ClientError("A repository's URL looks like http://host/owner/repo") from None
    return parts.scheme, parts.netloc, parts.hostname or "", parts.path


def is_this_machine(host: str) -> bool:
    """Whether a host's name says that it is this one."""
    if host in ("localhost", "127.0.0.1", "::1"):
        return True
    import ipaddress

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
