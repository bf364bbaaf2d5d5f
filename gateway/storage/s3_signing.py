"""URLs signed for S3 (Signature Version 4, in the query), dated by whoever calls.

The SDK signs by the process's clock and cannot be told another time; the promise is kept by the
database's. So this is ours: arithmetic on what it is given, without I/O and without a clock.
https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit

from leases.errors import InvalidRequest
from leases.policy import TTL_SECONDS_LONGEST_URL

_ALGORITHM = "AWS4-HMAC-SHA256"


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKeys:
    """Who signs; `ends_at` is the end of temporary keys, where it is known."""

    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)
    ends_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """A bucket's address; in path style its name stands in the path, else before the host."""

    url: str
    name: str
    region: str
    path_style: bool

    def place(self, key: str) -> tuple[str, str, str]:
        """Scheme, host and path of a blob."""
        parts = urlsplit(self.url)
        # Signed and sent must be equal, and clients leave the scheme's own port out.
        host = parts.netloc.lower().removesuffix(":443" if parts.scheme == "https" else ":80")
        if self.path_style:
            return parts.scheme, host, quote(f"/{self.name}/{key}", safe="/-._~")
        return parts.scheme, f"{self.name}.{host}", quote(f"/{key}", safe="/-._~")


def presigned(
    method: str,
    key: str,
    *,
    bucket: Bucket,
    keys: SigningKeys,
    signed_at: datetime,
    expires_in: int,
    parameters: Mapping[str, str] | None = None,
) -> str:
    """A URL for one method on one blob.

    Units:   it is dead `expires_in` seconds after the whole second of `signed_at`.
    Errors:  InvalidRequest for a life that no URL can have.
    """
    if not 1 <= expires_in <= TTL_SECONDS_LONGEST_URL:
        raise InvalidRequest("A URL lives for 1 second to 7 days.", expires_in=expires_in)
    moment = signed_at.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    scope = f"{moment[:8]}/{bucket.region}/s3/aws4_request"
    told = {
        **(parameters or {}),
        "X-Amz-Algorithm": _ALGORITHM,
        "X-Amz-Credential": f"{keys.access_key}/{scope}",
        "X-Amz-Date": moment,
        "X-Amz-Expires": str(expires_in),
        "X-Amz-SignedHeaders": "host",
    }
    if keys.session_token is not None:
        told["X-Amz-Security-Token"] = keys.session_token
    pairs = sorted(
        (quote(name, safe="-._~"), quote(text, safe="-._~")) for name, text in told.items()
    )
    query = "&".join(f"{name}={text}" for name, text in pairs)
    scheme, host, path = bucket.place(key)
    request = f"{method}\n{path}\n{query}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD"
    digest = hashlib.sha256(request.encode()).hexdigest()
    signature = _hmac(
        _signing_key(keys.secret_key, scope), f"{_ALGORITHM}\n{moment}\n{scope}\n{digest}"
    ).hex()
    return f"{scheme}://{host}{path}?{query}&X-Amz-Signature={signature}"


def _signing_key(secret_key: str, scope: str) -> bytes:
    key = f"AWS4{secret_key}".encode()
    for part in scope.split("/"):
        key = _hmac(key, part)
    return key


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()
