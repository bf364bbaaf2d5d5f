"""What the S3 client raises becomes one of our failures, without its words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import aiohttp
import botocore.exceptions
import pytest
from botocore.exceptions import BotoCoreError, ClientError

from gateway.storage.s3_errors import StoreRefused, asking, failure_of
from leases.circuit import is_outage
from leases.errors import BlobMissing, Failure, StoreUnavailable


def client_error(code: str, status: int, message: str = "words") -> ClientError:
    return ClientError(
        {
            "Error": {"Code": code, "Message": message},
            "ResponseMetadata": {"HTTPStatusCode": status},
        },
        "PutObject",
    )


@pytest.mark.parametrize(
    "code, status, kind",
    [
        ("NoSuchKey", 404, BlobMissing),
        ("NoSuchBucket", 404, StoreRefused),
        ("404", 404, StoreRefused),
        ("AccessDenied", 403, StoreRefused),
        ("SignatureDoesNotMatch", 403, StoreRefused),
        ("InvalidAccessKeyId", 403, StoreRefused),
        ("NotImplemented", 501, StoreRefused),
        ("SomethingNew", 400, StoreRefused),
        ("SlowDown", 503, StoreUnavailable),
        ("InternalError", 500, StoreUnavailable),
        ("RequestTimeout", 400, StoreUnavailable),
        ("RequestTimeTooSkewed", 403, StoreUnavailable),
        ("429", 429, StoreUnavailable),
        ("502", 502, StoreUnavailable),
    ],
)
def test_what_the_store_answers(code: str, status: int, kind: type[Failure]) -> None:
    failure = failure_of(client_error(code, status), call="put")
    assert type(failure) is kind
    assert is_outage(failure) == (kind is StoreUnavailable)


def all_of(kind: Any) -> Iterator[Any]:
    for one in kind.__subclasses__():
        yield one
        yield from all_of(one)


@pytest.mark.parametrize("kind", sorted(set(all_of(BotoCoreError)), key=str))
def test_no_error_of_the_library_is_unmapped(kind: Any) -> None:
    error = kind.__new__(kind)  # Each wants arguments of its own; its class is what matters.
    failure = failure_of(error, call="get")
    assert isinstance(failure, StoreUnavailable | StoreRefused)


@pytest.mark.parametrize(
    "error",
    [
        botocore.exceptions.ReadTimeoutError(endpoint_url="u"),
        botocore.exceptions.ConnectTimeoutError(endpoint_url="u"),
        botocore.exceptions.EndpointConnectionError(endpoint_url="u"),
        aiohttp.ClientPayloadError(),
        TimeoutError(),
        ConnectionResetError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_lost_connection_is_an_outage(error: Exception) -> None:
    assert isinstance(failure_of(error, call="get"), StoreUnavailable)


def test_the_stores_words_stay_out() -> None:
    secret = "https://host/key?X-Amz-Signature=abc"
    with pytest.raises(StoreRefused) as refused, asking("get"):
        raise client_error("AccessDenied", 403, secret)
    assert secret not in f"{refused.value} {refused.value.fields}"
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__
    odd = failure_of(client_error(secret, 403), call="get")
    assert secret not in str(odd)


def test_a_bug_is_not_the_stores() -> None:
    with pytest.raises(KeyError), asking("get"):
        raise KeyError("bug")
