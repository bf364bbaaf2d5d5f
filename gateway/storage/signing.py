"""Signed URLs of the local store, and the key that signs them.

The signature is HMAC-SHA256 over method, blob key and expiry. The signing key lies beside the
blobs, is made once, and is shared by all replicas on that folder, so that each of them can check
what another signed. It is a secret: nothing here shows it, nor a signature, in a repr or an error.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from gateway.errors import Forbidden
from gateway.storage.keys import check_key
from leases.errors import Corrupt, InvalidRequest
from leases.ids import new_token
from leases.policy import TTL_SECONDS_LONGEST_URL

SIGNING_KEY_BYTES = 32  # The output length of SHA-256; a longer key adds nothing.

_EPOCH_SECONDS = re.compile(r"[0-9]{1,12}", re.ASCII)


class UrlTampered(Forbidden):
    """The signature of this URL does not fit it."""

    code = "url_tampered"


class UrlExpired(Forbidden):
    """This URL has expired; ask for a new one."""

    code = "url_expired"


class UrlSigner:
    """Signs URLs and checks them, both by the clock it was given (the database's, as known)."""

    __slots__ = ("_clock", "_key", "_public_url")

    def __init__(self, key: bytes, *, public_url: str, clock: Callable[[], datetime]) -> None:
        self._key = key
        self._public_url = public_url.rstrip("/")
        self._clock = clock

    def sign(self, method: str, key: str, *, expires_in: int) -> str:
        """A URL for one method on one blob.

        Units:   it is dead `expires_in` seconds after the *current whole second*: signed at
                 12:00:00.9 for one second, it lives for a tenth of one.
        """
        if not 1 <= expires_in <= TTL_SECONDS_LONGEST_URL:
            raise InvalidRequest("A URL lives for 1 second to 7 days.", expires_in=expires_in)
        expires = str(int(self._clock().timestamp()) + expires_in)
        signature = self._signature(method, check_key(key), expires)
        return f"{self._public_url}/blobs/{key}?expires={expires}&signature={signature}"

    def verify(self, method: str, key: str, *, expires: str, signature: str) -> None:
        """Pass a URL that was signed for this method and key and still lives.

        Errors:  UrlTampered; UrlExpired from the very second `expires` on. The signature is
                 checked first, so that nobody learns anything by changing the expiry.
        """
        expected = self._signature(method, key, expires)
        fits = hmac.compare_digest(expected.encode(), signature.encode(errors="replace"))
        if not fits or _EPOCH_SECONDS.fullmatch(expires) is None:
            raise UrlTampered
        if self._clock().timestamp() >= int(expires):
            raise UrlExpired

    def _signature(self, method: str, key: str, expires: str) -> str:
        # A method has no newline and neither has a valid key, so the three parts cannot run
        # into each other.
        told = f"{method}\n{key}\n{expires}".encode(errors="replace")
        return hmac.new(self._key, told, hashlib.sha256).hexdigest()


def shared_signing_key(path: Path, *, scratch: Path) -> bytes:
    """Read the key that all replicas on this folder share, making it when there is none.

    Effects: may write `path` (mode 0600), by way of a file in `scratch`: it is linked into place
             only when whole, and only one of several starters can do that. All read the winner's.
    """
    with suppress(FileNotFoundError):
        return _read_signing_key(path)
    candidate = scratch / f"signing-key.{new_token(8)}"
    descriptor = os.open(candidate, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(SIGNING_KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(candidate, path)
    finally:
        candidate.unlink(missing_ok=True)
    return _read_signing_key(path)


def _read_signing_key(path: Path) -> bytes:
    key = path.read_bytes()
    if len(key) != SIGNING_KEY_BYTES:
        raise Corrupt("The file with the URL signing key is damaged.", size_bytes=len(key))
    return key
