"""What a client of the gateway can meet.

    leases.errors.Failure
    └── ClientError
        ├── Refused          the gateway said no; its own sentence is the message
        │   ├── AccessDenied     401, 403: the token is missing, wrong, or not enough
        │   ├── Missing          404, 410: unknown, or private to somebody else
        │   └── Diverged         409, or seen before pushing: the branch has moved elsewhere
        ├── Unreachable      no answer, or 429/503, after the attempts are used up; try later
        ├── UrlExpired       the presigned URL is dead, and a fresh one too
        ├── DownloadCut      the transfer broke off too often
        ├── TooBig           an answer or a pack is above this client's limit
        ├── BadPack          bytes that are not what their id or the answer says
        └── CheckoutRefused  a path that leads out of the folder, or a file that is not in the pack

No message holds more of a URL than its scheme, host and path: the rest is a signature.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leases.errors import Failure

_SENTENCE_CHARACTERS_MAX = 400  # What the Muse client shows of an answer, too.


class ClientError(Failure):
    """The gateway's client could not do this."""

    code = "client_error"


class Refused(ClientError):
    """The gateway refused this."""

    code = "refused"


class AccessDenied(Refused):
    """This needs a valid token that may do it."""

    code = "access_denied"


class Missing(Refused):
    """There is nothing by that name here, or this token may not see it."""

    code = "missing"


class Diverged(Refused):
    """The branch has commits that this history does not have; fetch first, or force."""

    code = "diverged"


class Unreachable(ClientError):
    """The gateway does not answer; try again shortly."""

    code = "unreachable"


class UrlExpired(ClientError):
    """The presigned URL is dead, and so was the fresh one."""

    code = "url_expired"


class DownloadCut(ClientError):
    """The transfer broke off too often."""

    code = "download_cut"


class TooBig(ClientError):
    """The answer is above this client's limit."""

    code = "too_big"


class BadPack(ClientError):
    """These bytes are not what they say they are."""

    code = "bad_pack"


class CheckoutRefused(ClientError):
    """This cannot be checked out."""

    code = "checkout_refused"


def shown_url(url: str) -> str:
    """The part of a URL that is no secret: scheme, host, path."""
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


def refusal(status: int, body: Mapping[str, Any], *, doing: str) -> Refused:
    """The error for an answer that is no success, with the gateway's own sentence in it."""
    kind = _BY_STATUS.get(status, Refused)
    sentence = str(body.get("message") or (kind.__doc__ or "").partition("\n")[0])
    fields: dict[str, Any] = {"status": status, "doing": doing}
    for name in ("code", "request_id"):
        if body.get(name):
            fields[name] = str(body[name])[:_SENTENCE_CHARACTERS_MAX]
    missing = body.get("missing")
    if isinstance(missing, list):
        fields["missing_count"] = len(missing)
        fields["missing_first"] = str(next(iter(missing), ""))[:_SENTENCE_CHARACTERS_MAX]
    return kind(sentence[:_SENTENCE_CHARACTERS_MAX], **fields)


_BY_STATUS: dict[int, type[Refused]] = {
    401: AccessDenied,
    403: AccessDenied,
    404: Missing,
    409: Diverged,
    410: Missing,
}
