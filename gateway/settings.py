"""Every setting of the service: read once, from one place, checked before anything starts.

Each is an environment variable `MPACK_<NAME>`, or `MPACK_<NAME>_FILE` with the path of a file that
holds the value. `mpack-gateway config show` prints what is in force, without secrets.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from starlette.datastructures import Secret

from gateway.environment import SettingsInvalid, named_fields, parts_of, read
from gateway.packs.policy import PackPolicy
from gateway.storage.s3_settings import S3Settings
from gateway.wire.limits import MIB, WireLimits
from leases.policy import LeasePolicy
from leases.steps import Step

__all__ = ["Settings", "SettingsInvalid", "hide_password"]

HIDDEN = "**********"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the service was told; `problems()` says what cannot work."""

    database_url: Secret
    database_direct_url: Secret | None = None
    database_pool_size: int = 10
    host: str = "127.0.0.1"
    port: int = 8080
    public_url: str | None = None
    data_dir: Path = Path("mpack-data")
    log_format: Literal["json", "console"] = "json"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    create_repo_on_push: bool = True
    # The Muse client clones without its token, so what it pushed must be readable without one.
    new_repo_visibility: Literal["public", "private"] = "public"
    body_timeout_seconds: float = 60
    bodies_bytes_max: int = 512 * MIB
    slow_seconds: float = 5
    slow_bytes_per_second: int = 1024
    token_requests_per_second: float = 0
    address_requests_per_second: float = 0
    requests_burst_seconds: float = 10
    forwarded_allow_ips: str | None = None
    shutdown_timeout_seconds: int = 10
    drain_seconds: float = 0
    event_streams_max: int = 20
    metrics_token: Secret | None = None
    crash_at: Step | None = None
    lease: LeasePolicy = field(default_factory=LeasePolicy)
    wire: WireLimits = field(default_factory=WireLimits)
    pack: PackPolicy = field(default_factory=PackPolicy)
    s3: S3Settings = field(default_factory=S3Settings)

    @classmethod
    def from_environment(
        cls, environ: Mapping[str, str] | None = None, /, **overrides: str | None
    ) -> Settings:
        """Read and check the settings; an override is a field's name and its text.

        Errors: SettingsInvalid with every problem there is, not just the first.
        """
        source = dict(os.environ if environ is None else environ)
        source |= {f"MPACK_{name.upper()}": text for name, text in overrides.items() if text}
        settings, problems = read(cls, source)
        if settings is not None:
            problems = settings.problems()
        if settings is None or problems:
            raise SettingsInvalid(problems)
        return settings

    @property
    def base_url(self) -> str:
        """What URLs that we hand out begin with, without a slash at the end."""
        return (self.public_url or address(self.host, self.port)).rstrip("/")

    def problems(self) -> list[str]:
        """One sentence for each value, or pair of values, that cannot work."""
        found = list(self._wrong_urls()) + list(self._wrong_numbers())
        found += self._wrong_quotas()
        groups = (self.lease, self.wire, self.pack, self.s3)
        return found + [f"{sentence}." for group in groups for sentence in group.problems()]

    def _wrong_urls(self) -> Iterator[str]:
        for name in ("database_url", "database_direct_url"):
            url = getattr(self, name)
            if url is not None and not str(url).startswith(_DATABASE_BEGINNINGS):
                yield f"{name} must begin with postgresql://."
            elif url is not None and parts_of(str(url)) is None:
                yield f"{name} has a host or a port that is none."
        if self.public_url is not None:
            parts = parts_of(self.public_url)
            if parts is None or parts.scheme not in ("http", "https") or not parts.netloc:
                yield "public_url must be a whole URL that begins with http:// or https://."
            elif parts.query or parts.fragment or parts.username:
                yield "public_url must hold no user, query or fragment."

    def _wrong_numbers(self) -> Iterator[str]:
        if not 0 <= self.port <= 65_535:
            yield "port must lie between 0 and 65535."
        for name in _MAY_BE_ZERO - {"port"}:
            if not getattr(self, name) >= 0:
                yield f"{name} must not be negative."
        for item in named_fields(type(self)):
            is_number = item.group is None and item.type in (int, float)
            if is_number and item.name not in _MAY_BE_ZERO and not getattr(self, item.name) > 0:
                yield f"{item.name} must be above zero."

    def _wrong_quotas(self) -> Iterator[str]:
        """An upload counts as the largest there may be, so one of these must fit."""
        for name in ("transient_bytes_per_repo_max", "transient_bytes_max"):
            if 0 < getattr(self.lease, name) < self.wire.upload_bytes_max:
                yield f"upload_bytes_max must not exceed {name}, or nothing is uploaded by URL."

    def redacted(self) -> dict[str, Any]:
        """Every setting by its name, ready to print; no secret is among them."""
        shown = {}
        for item in named_fields(type(self)):
            holder = self if item.group is None else getattr(self, item.group)
            shown[item.name] = _printable(item.name, getattr(holder, item.name))
        return shown


_MAY_BE_ZERO = frozenset(
    {"port", "drain_seconds", "token_requests_per_second", "address_requests_per_second"}
)
_DATABASE_BEGINNINGS = ("postgresql://", "postgresql+asyncpg://", "postgres://")


def _printable(name: str, value: Any) -> Any:
    if isinstance(value, Secret):
        return hide_password(str(value)) if name.endswith("_url") else HIDDEN
    if isinstance(value, Path):
        return str(value)
    return value


def hide_password(url: str) -> str:
    """The URL with the password, if it holds one, replaced."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    if ":" in user:
        user = user.partition(":")[0] + ":" + HIDDEN
    pairs = [
        (key, HIDDEN if "password" in key.lower() else value)
        for key, value in parse_qsl(parts.query, keep_blank_values=True)
    ]
    query = urlencode(pairs, safe="*/", quote_via=quote)
    # urlunsplit would drop the slashes before an empty host, and sockets have none.
    address = f"{parts.scheme}://{user}{at}{host}{parts.path}"
    return f"{address}?{query}" if query else address


def address(host: str, port: int) -> str:
    """The URL by which this machine reaches who listens there."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  compared only
    shown = f"[{reachable}]" if ":" in reachable else reachable
    return f"http://{shown}:{port}"


def database_dsn(url: Secret) -> str:
    """The URL as SQLAlchemy's asyncpg dialect wants it."""
    return "postgresql+asyncpg://" + str(url).partition("://")[2]


def child_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """This process's environment for another one, with these `MPACK_*` in place of all of ours."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("MPACK_")}
    return kept | dict(settings)
