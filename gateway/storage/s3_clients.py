"""The two S3 clients of a process: one that builds and tries again, one that reaps and tries once.

A deletion that was not answered is tried again by the reaper, which also counts it; a client that
did so on its own would send deletions nobody knows of.
"""

from __future__ import annotations

import base64
import hashlib
from contextlib import AsyncExitStack
from datetime import datetime
from typing import Any

from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession, get_session
from starlette.datastructures import Secret

from gateway.storage.s3_errors import StoreRefused, asking
from gateway.storage.s3_settings import S3Settings
from gateway.storage.s3_signing import SigningKeys

CONNECT_SECONDS = 2.0
READ_SECONDS = 10.0
_BUILDER_ATTEMPTS = 3
_REAPER_ATTEMPTS = 1
# More than builds, pushes and reap workers ask for at once: 4 builds of 8 reads, 4 workers of 16.
_CONNECTIONS_MAX = 64


class S3Clients:
    """Opens and closes the clients, and knows the keys that sign URLs."""

    def __init__(self, settings: S3Settings) -> None:
        self._settings = settings
        self._session: AioSession = get_session()
        self._open = AsyncExitStack()
        self._credentials: Any = None
        self.builder: Any = None  # The library has no types.
        self.reaper: Any = None

    async def open(self) -> None:
        """Make both clients; nothing is sent yet, but keys may be asked for.

        Errors: StoreRefused when there are no keys anywhere; StoreUnavailable.
        """
        told = self._settings
        builds = _keys(told.s3_access_key, told.s3_secret_key, told.s3_session_token)
        reaps = _keys(told.s3_reaper_access_key, told.s3_reaper_secret_key, None) or builds
        async with AsyncExitStack() as opening:
            with asking("credentials"):
                self.builder = await self._client(opening, _BUILDER_ATTEMPTS, builds)
                self.reaper = await self._client(opening, _REAPER_ATTEMPTS, reaps)
                if not builds:
                    self._credentials = await self._session.get_credentials()
            if not builds and self._credentials is None:
                raise StoreRefused("There are no S3 credentials: set s3_access_key and its secret.")
            self._open = opening.pop_all()

    async def close(self) -> None:
        """Close the clients and their connections."""
        await self._open.aclose()

    async def signing_keys(self) -> SigningKeys:
        """The keys as they are now; temporary ones are renewed in time.

        Errors: StoreUnavailable when they cannot be.
        """
        told = self._settings
        if told.s3_access_key is not None:
            token = told.s3_session_token
            return SigningKeys(
                access_key=str(told.s3_access_key),
                secret_key=str(told.s3_secret_key),
                session_token=None if token is None else str(token),
            )
        with asking("credentials"):
            frozen = await self._credentials.get_frozen_credentials()
        # The library tells nobody when its keys end, but keeps it under this name.
        ends_at: datetime | None = getattr(self._credentials, "_expiry_time", None)
        return SigningKeys(
            access_key=frozen.access_key,
            secret_key=frozen.secret_key,
            session_token=frozen.token,
            ends_at=ends_at,
        )

    async def _client(self, opening: AsyncExitStack, attempts: int, keys: dict[str, str]) -> Any:
        told = self._settings
        config = AioConfig(
            signature_version="s3v4",  # Else custom endpoints get the older one.
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            max_pool_connections=_CONNECTIONS_MAX,
            # `max_attempts` would count the retries.
            retries={"mode": "standard", "total_max_attempts": attempts},
            # What goes beyond S3's first protocol is refused by many stores.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path" if told.s3_path_style else "virtual"},
        )
        making = self._session.create_client(
            "s3", endpoint_url=told.s3_endpoint, region_name=told.s3_region, config=config, **keys
        )
        client = await opening.enter_async_context(making)
        client.meta.events.register("before-call.s3.DeleteObjects", _with_md5)
        return client


def _keys(access: Secret | None, secret: Secret | None, token: Secret | None) -> dict[str, str]:
    if access is None or secret is None:
        return {}
    keys = {"aws_access_key_id": str(access), "aws_secret_access_key": str(secret)}
    return keys if token is None else keys | {"aws_session_token": str(token)}


def _with_md5(params: dict[str, Any], **_told: Any) -> None:
    """DeleteObjects must carry a checksum; MD5 is the one that every store knows."""
    digest = hashlib.md5(params["body"], usedforsecurity=False).digest()
    params["headers"]["Content-MD5"] = base64.b64encode(digest).decode()
    params["context"].pop("checksum", None)
