"""Where the bucket is, and who may do what in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields

from starlette.datastructures import Secret

from gateway.environment import parts_of

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]\Z", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Settings:
    """An S3 bucket; with `s3_bucket` set it is the store. `problems()` says what cannot work.

    Without keys the AWS SDK's own chain is asked: its variables, its files, the machine's role.
    """

    s3_bucket: str | None = None
    s3_endpoint: str | None = None
    s3_public_endpoint: str | None = None
    s3_region: str = "us-east-1"
    s3_path_style: bool = True
    s3_access_key: Secret | None = None
    s3_secret_key: Secret | None = None
    s3_session_token: Secret | None = None
    s3_reaper_access_key: Secret | None = None
    s3_reaper_secret_key: Secret | None = None

    @property
    def base_url(self) -> str:
        """Where the gateway itself reaches the store, without the bucket."""
        return (self.s3_endpoint or f"https://s3.{self.s3_region}.amazonaws.com").rstrip("/")

    @property
    def public_url(self) -> str:
        """What signed URLs begin with, without the bucket."""
        return (self.s3_public_endpoint or self.base_url).rstrip("/")

    def told(self) -> dict[str, str]:
        """What was set, as it is told to another process: secrets among it."""
        return {name: _text(getattr(self, name)) for name in self._set()}

    def problems(self) -> list[str]:
        """One sentence, without its full stop, for each value or pair that cannot work."""
        if self.s3_bucket is None:
            return [f"{name} is set, but s3_bucket is not" for name in self._set()]
        return list(self._wrong_values())

    def _set(self) -> Iterator[str]:
        for item in fields(self):
            if getattr(self, item.name) != item.default:
                yield item.name

    def _wrong_values(self) -> Iterator[str]:
        assert self.s3_bucket is not None
        if _BUCKET.match(self.s3_bucket) is None:
            yield "s3_bucket must be a bucket's name: 3 to 63 small letters, digits, dashes, dots"
        for name in ("s3_endpoint", "s3_public_endpoint"):
            url = getattr(self, name)
            if url is not None and not _is_address(url):
                yield f"{name} must be http:// or https:// with a host, and no more than that"
        if not self.s3_region:
            yield "s3_region must not be empty"
        for first, second in (
            ("s3_access_key", "s3_secret_key"),
            ("s3_reaper_access_key", "s3_reaper_secret_key"),
        ):
            if (getattr(self, first) is None) != (getattr(self, second) is None):
                yield f"{first} and {second} go together; one of them is missing"
        if self.s3_session_token is not None and self.s3_access_key is None:
            yield "s3_session_token needs the s3_access_key that it belongs to"


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_address(url: str) -> bool:
    parts = parts_of(url)
    if parts is None:
        return False
    bare = not (parts.username or parts.query or parts.fragment or parts.path.strip("/"))
    return parts.scheme in ("http", "https") and bool(parts.hostname) and bare
