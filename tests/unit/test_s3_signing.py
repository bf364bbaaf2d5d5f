"""URLs signed for S3: by the published example, and by the SDK's own word."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from gateway.storage.s3_signing import Bucket, SigningKeys, presigned
from leases.errors import InvalidRequest

KEYS = SigningKeys(
    access_key="AKIAIOSFODNN7EXAMPLE", secret_key="wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
)
AT = datetime(2013, 5, 24, tzinfo=UTC)
AWS = Bucket(
    url="https://s3.amazonaws.com", name="examplebucket", region="us-east-1", path_style=False
)
LOCAL = Bucket(url="http://127.0.0.1:8480", name="packs", region="eu-west-1", path_style=True)


def test_the_published_example() -> None:
    """https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html."""
    url = presigned("GET", "test.txt", bucket=AWS, keys=KEYS, signed_at=AT, expires_in=86400)
    assert url.startswith("https://examplebucket.s3.amazonaws.com/test.txt?")
    assert url.endswith("aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404")


@pytest.mark.parametrize("method", ["GET", "PUT"])
@pytest.mark.parametrize("token", [None, "a+token/with=signs"])
@pytest.mark.parametrize("bucket", [AWS, LOCAL], ids=["virtual", "path"])
def test_agrees_with_the_sdk(
    monkeypatch: pytest.MonkeyPatch, bucket: Bucket, token: str | None, method: str
) -> None:
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: AT.replace(tzinfo=None))
    key = "transient/l.o-g/m_1"
    keys = SigningKeys(access_key="AK", secret_key="SK", session_token=token)
    ours = presigned(method, key, bucket=bucket, keys=keys, signed_at=AT, expires_in=60)
    request: Any = AWSRequest(method, ours.partition("?")[0])
    credentials = Credentials("AK", "SK", token)
    botocore.auth.S3SigV4QueryAuth(credentials, "s3", bucket.region, expires=60).add_auth(request)
    assert parse_qs(urlsplit(ours).query) == parse_qs(urlsplit(request.url).query)


def test_is_dated_by_the_whole_second_in_utc() -> None:
    moment = datetime.fromisoformat("2026-11-23T23:59:59.999+01:00")
    url = presigned("GET", "k", bucket=LOCAL, keys=KEYS, signed_at=moment, expires_in=1)
    assert parse_qs(urlsplit(url).query)["X-Amz-Date"] == ["20261123T225959Z"]


@pytest.mark.parametrize(
    "url, host",
    [
        ("https://s3.example:443", "s3.example"),
        ("http://S3.Example:80/", "s3.example"),
        ("http://s3.example:443", "s3.example:443"),
    ],
)
def test_the_host_is_signed_as_clients_send_it(url: str, host: str) -> None:
    bucket = Bucket(url=url, name="b", region="r", path_style=True)
    assert bucket.place("k")[1] == host


@pytest.mark.parametrize("expires_in", [0, -1, 7 * 24 * 3600 + 1])
def test_refuses_a_life_no_url_can_have(expires_in: int) -> None:
    with pytest.raises(InvalidRequest):
        presigned("GET", "k", bucket=LOCAL, keys=KEYS, signed_at=AT, expires_in=expires_in)


def test_shows_no_secret() -> None:
    assert repr(KEYS) == "SigningKeys(ends_at=None)"
