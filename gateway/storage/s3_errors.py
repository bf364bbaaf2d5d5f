"""What the S3 client raises, said as one of our failures; the store's words stay out of them.

Unavailable
├── StoreUnavailable   timeouts, lost connections, 5xx, SlowDown, a wrong clock: wait
└── StoreRefused       access denied, no such bucket, and all we do not know: someone must act
NotFound
└── BlobMissing        no such key
Corrupt
└── StoreVersioned     the bucket keeps what is deleted
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
)
from botocore.exceptions import ConnectionError as NotConnected
from botocore.parsers import ResponseParserError

from leases.errors import BlobMissing, Corrupt, Failure, StoreUnavailable, Unavailable

_PASSING = frozenset(
    {"SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "OperationAborted"}
    | {"Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests"}
    # This process's clock is wrong, or the store's: nothing that a blob can be blamed for.
    | {"RequestTimeTooSkewed"}
)
_CODE = re.compile(r"[A-Za-z0-9.]{1,64}\Z", re.ASCII)
# Passing, though the library calls some of them its own errors: an answer that broke off or was
# not S3's (a proxy's page), keys that could not be fetched just now.
_OUTAGES = (
    HTTPClientError,
    NotConnected,
    CredentialRetrievalError,
    IncompleteReadError,
    ResponseParserError,
    aiohttp.ClientError,
    TimeoutError,
    OSError,
)


class StoreRefused(Unavailable):
    """The object store refuses what the gateway asks of it."""

    code = "store_refused"


class StoreVersioned(Corrupt):
    """The bucket keeps versions of what is deleted, so nothing would ever be gone: use another."""

    code = "store_versioned"


def code_of(error: ClientError) -> str:
    """The store's error code; HEAD has no body and leaves the status."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    return code if _CODE.match(code) else "unknown"


def status_of(error: ClientError) -> int:
    """The answer's HTTP status."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def failure_of_code(code: str, *, call: str, status: int = 0) -> Failure:
    """What an error code means, in an answer or for one key of many."""
    if code in ("NoSuchKey", "NoSuchVersion"):
        return BlobMissing()
    if code in _PASSING or status == 429 or (status >= 500 and status != 501):
        return StoreUnavailable(call=call, cause=code)
    return StoreRefused(f"The object store refuses {call}: {code}.")


def failure_of(error: Exception, *, call: str) -> Failure | None:
    """What an error of the client means; None for what is not its."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, ClientError):
        return failure_of_code(code_of(error), call=call, status=status_of(error))
    if isinstance(error, _OUTAGES):
        return StoreUnavailable(call=call, cause=type(error).__name__)
    if isinstance(error, BotoCoreError):  # No credentials, a parameter it does not like.
        return StoreRefused(f"The object store cannot be asked for {call}: {type(error).__name__}.")
    return None


@contextmanager
def asking(call: str) -> Iterator[None]:
    """Translate whatever the client raises in the block."""
    try:
        yield
    except Failure:
        raise
    except Exception as error:
        if (failure := failure_of(error, call=call)) is None:
            raise
        # Its words may hold what a header or a URL held, so they are not even chained.
        raise failure from None
