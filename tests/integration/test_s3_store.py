"""The S3 store on a real server, beyond what every adapter must do."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from gateway.storage.s3 import S3Store, StoreRefused, StoreVersioned
from gateway.storage.s3_clients import S3Clients
from gateway.storage.s3_settings import S3Settings
from gateway.storage.s3_upload import PART_BYTES
from leases.clock import SystemClock
from leases.errors import StoreUnavailable
from leases.ports import DeleteOutcome, LifecycleRule
from tests.loopback import bound_socket, served
from tests.rgw import new_bucket, owner, s3_settings, server
from tests.s3_proxy import Request, S3Proxy, answer, s3_proxied

KEY = "transient/log/pack"


@pytest.fixture
def bucket() -> str:
    return new_bucket()


@pytest.fixture
async def store(bucket: str) -> AsyncIterator[S3Store]:
    async with S3Store(s3_settings(bucket)) as store:
        yield store


@pytest.fixture
async def proxy() -> AsyncIterator[S3Proxy]:
    async with s3_proxied(server().endpoint) as proxy:
        yield proxy


@pytest.fixture
async def through(bucket: str, proxy: S3Proxy) -> AsyncIterator[S3Store]:
    """The store behind the proxy."""
    async with S3Store(s3_settings(bucket, s3_endpoint=proxy.url)) as store:
        proxy.requests.clear()
        yield store


def unfinished(bucket: str) -> list[str]:
    found = owner().list_multipart_uploads(Bucket=bucket)
    return [upload["Key"] for upload in found.get("Uploads", [])]


# Uploads. ----------------------------------------------------------------------------------------


async def pieces(count: int, size: int = 3_000_000) -> AsyncIterator[bytes]:
    for number in range(count):
        yield bytes([number]) * size


async def test_what_is_larger_than_a_part_goes_up_in_parts(store: S3Store, bucket: str) -> None:
    await store.put(KEY, pieces(7))
    found = owner().head_object(Bucket=bucket, Key=KEY)
    assert found["ETag"].endswith('-3"')
    assert found["CacheControl"] == "private, no-store"
    digest = hashlib.sha256(b"".join([piece async for piece in pieces(7)]))
    assert hashlib.sha256(await store.get(KEY)).digest() == digest.digest()
    assert unfinished(bucket) == []


@pytest.mark.parametrize("size", [PART_BYTES, PART_BYTES + 1], ids=["a part", "a byte more"])
async def test_bytes_at_the_edge_of_a_part(store: S3Store, bucket: str, size: int) -> None:
    await store.put(KEY, bytes(size))
    found = owner().head_object(Bucket=bucket, Key=KEY)
    assert found["ContentLength"] == size
    assert found["ETag"].endswith('-2"') == (size > PART_BYTES)


async def test_a_source_that_fails_in_the_midst_leaves_nothing(store: S3Store, bucket: str) -> None:
    async def source() -> AsyncIterator[bytes]:
        async for piece in pieces(7):
            yield piece
        raise LookupError("the segment is gone")

    with pytest.raises(LookupError):
        await store.put(KEY, source())
    assert await store.head(KEY) is None
    assert unfinished(bucket) == []


async def test_a_cancelled_upload_leaves_nothing(store: S3Store, bucket: str) -> None:
    reached = asyncio.Event()

    async def source() -> AsyncIterator[bytes]:
        async for piece in pieces(7):
            yield piece
        reached.set()
        await asyncio.Event().wait()

    putting = asyncio.create_task(store.put(KEY, source()))
    await reached.wait()
    assert unfinished(bucket) == [KEY]
    putting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await putting
    assert await store.head(KEY) is None
    assert unfinished(bucket) == []


async def test_a_part_that_is_refused_ends_the_upload(
    through: S3Store, proxy: S3Proxy, bucket: str
) -> None:
    async def refuse(request: Request) -> bytes | None:
        return answer(403, "AccessDenied") if "partNumber=2" in request.query else None

    proxy.meddle = refuse
    with pytest.raises(StoreRefused, match="AccessDenied"):
        await through.put(KEY, pieces(9))
    assert unfinished(bucket) == []


async def test_a_lost_answer_to_the_last_step_is_no_failure(
    through: S3Store, proxy: S3Proxy, bucket: str
) -> None:
    """The upload is complete, the answer is lost, and asking again finds no upload."""
    lost = 0

    async def lose(request: Request) -> bytes | None:
        nonlocal lost
        if request.method != "POST" or "uploadId=" not in request.query:
            return None
        lost += 1
        if lost > 1:
            return answer(404, "NoSuchUpload")
        upload_id = request.query.removeprefix("uploadId=")
        parts = owner().list_parts(Bucket=bucket, Key=KEY, UploadId=upload_id)["Parts"]
        named = [{name: part[name] for name in ("PartNumber", "ETag")} for part in parts]
        owner().complete_multipart_upload(
            Bucket=bucket, Key=KEY, UploadId=upload_id, MultipartUpload={"Parts": named}
        )
        return answer(500, "InternalError")

    proxy.meddle = lose
    await through.put(KEY, pieces(7))
    assert lost == 2
    assert (await through.get(KEY, 3_000_000, 3_000_001)) == b"\x01"


async def test_aborts_what_another_process_left(store: S3Store, bucket: str) -> None:
    for key in (KEY, KEY, f"{KEY}-of-somebody-else"):
        owner().create_multipart_upload(Bucket=bucket, Key=key)
    assert await store.abort_uploads(KEY) == 2
    assert unfinished(bucket) == [f"{KEY}-of-somebody-else"]


# URLs. -------------------------------------------------------------------------------------------


async def test_a_url_is_refused_when_anything_in_it_was_changed(store: S3Store) -> None:
    await store.put(KEY, b"x")
    await store.put(f"{KEY}2", b"y")
    url = await store.presign_get(KEY, expires_in=60)
    signature = url.rpartition("=")[2]
    async with httpx2.AsyncClient(trust_env=False) as http:
        assert (await http.get(url)).content == b"x"
        refused = [
            await http.get(url.replace(KEY, f"{KEY}2")),
            await http.get(url.replace("X-Amz-Expires=60", "X-Amz-Expires=600")),
            await http.get(url.replace(signature, "0" * 64)),
            await http.get(url.partition("?")[0]),
            await http.put(url, content=b"z"),
            await http.delete(url),
            await http.head(url),
        ]
    assert [answer.status_code for answer in refused] == [403] * len(refused)
    assert await store.get(KEY) == b"x"


async def test_a_url_to_store_does_not_read(store: S3Store) -> None:
    url = await store.presign_put(KEY, expires_in=60)
    async with httpx2.AsyncClient(trust_env=False) as http:
        assert (await http.put(url, content=b"new")).status_code == 200
        assert (await http.get(url)).status_code == 403
    assert await store.get(KEY) == b"new"


async def test_a_url_is_dated_by_the_clock_it_is_given(bucket: str) -> None:
    """The database's: of a process whose clock is wrong, URLs live and die on time all the same."""
    clock = SystemClock()
    settings = s3_settings(bucket)
    now = clock.now()
    async with S3Store(settings, clock=lambda: now.replace(year=now.year - 1)) as past:
        await past.put(KEY, b"x")
        url = await past.presign_get(KEY, expires_in=7 * 24 * 3600)
    assert f"X-Amz-Date={now.year - 1}" in url
    async with httpx2.AsyncClient(trust_env=False) as http:
        assert (await http.get(url)).status_code == 403


async def test_urls_lead_to_the_public_endpoint(bucket: str, proxy: S3Proxy) -> None:
    async with S3Store(s3_settings(bucket, s3_public_endpoint=proxy.url)) as store:
        await store.put(KEY, b"x")
        url = await store.presign_get(KEY, expires_in=60)
        async with httpx2.AsyncClient(trust_env=False) as http:
            assert (await http.get(url)).content == b"x"
    assert url.startswith(f"{proxy.url}/{bucket}/{KEY}?")
    assert [request.method for request in proxy.requests] == ["GET"]


# Deletions. --------------------------------------------------------------------------------------


async def test_a_thousand_go_in_one_request(through: S3Store, proxy: S3Proxy) -> None:
    outcomes = await through.delete_many([f"transient/log/{n}" for n in range(1001)])
    assert set(outcomes.values()) == {DeleteOutcome.DELETED}
    assert [request.method for request in proxy.requests] == ["POST", "POST"]


@pytest.mark.parametrize(
    "status, code", [(501, "NotImplemented"), (405, "MethodNotAllowed"), (403, "AccessDenied")]
)
async def test_where_bulk_deletion_is_refused_each_blob_gets_a_request(
    through: S3Store, proxy: S3Proxy, status: int, code: str
) -> None:
    async def refuse(request: Request) -> bytes | None:
        return answer(status, code) if request.method == "POST" else None

    proxy.meddle = refuse
    keys = [f"transient/log/{number}" for number in range(40)]
    for key in keys[:3]:
        await through.put(key, b"x")
    proxy.requests.clear()
    outcomes = await through.delete_many(keys)
    assert outcomes == dict.fromkeys(keys, DeleteOutcome.DELETED)
    assert [key async for key in through.list("transient/")] == []
    await through.delete_many(keys[:2])
    methods = [request.method for request in proxy.requests]
    assert methods.count("POST") == 1, "the refusal is remembered"
    assert methods.count("DELETE") == 42


async def test_an_outage_is_not_taken_for_a_refusal(through: S3Store, proxy: S3Proxy) -> None:
    """And the reaper's client tries once: the reaper itself tries again, and counts."""

    async def out(_request: Request) -> bytes | None:
        return answer(503, "SlowDown")

    proxy.meddle = out
    outcomes = await through.delete_many([KEY])
    assert isinstance(outcomes[KEY], StoreUnavailable)
    with pytest.raises(StoreUnavailable):
        await through.delete(KEY)
    assert len(proxy.requests) == 2
    with pytest.raises(StoreUnavailable):
        await through.get(KEY)
    assert len(proxy.requests) == 5, "the builder's client tries three times"


async def test_silence_about_a_key_is_no_success(through: S3Store, proxy: S3Proxy) -> None:
    async def quiet(_request: Request) -> bytes | None:
        body = b"<DeleteResult><Deleted><Key>transient/log/a</Key></Deleted></DeleteResult>"
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (
            len(body),
            body,
        )

    proxy.meddle = quiet
    outcomes = await through.delete_many(["transient/log/a", "transient/log/b"])
    assert outcomes["transient/log/a"] is DeleteOutcome.DELETED
    assert isinstance(outcomes["transient/log/b"], StoreUnavailable)


async def test_only_a_missing_key_counts_as_gone(through: S3Store, proxy: S3Proxy) -> None:
    """A proxy that knows nobody answers 404 to everything."""
    codes = iter(["NoSuchKey", "NoSuchBucket"])

    async def absent(_request: Request) -> bytes | None:
        return answer(404, next(codes))

    proxy.meddle = absent
    assert await through.delete(KEY) is DeleteOutcome.DELETED
    with pytest.raises(StoreRefused, match="NoSuchBucket"):
        await through.delete(KEY)


async def test_an_answer_that_breaks_off_is_an_outage(through: S3Store, proxy: S3Proxy) -> None:
    await through.put(KEY, b"x" * 10_000)
    proxy.cut = True
    with pytest.raises(StoreUnavailable):
        await through.get(KEY)


# The bucket. -------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["Enabled", "Suspended"])
async def test_a_bucket_that_keeps_versions_is_refused(bucket: str, status: str) -> None:
    owner().put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    owner().put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": status})
    with pytest.raises(StoreVersioned, match="versions"):
        async with S3Store(s3_settings(bucket)):
            pass


async def test_a_store_that_is_out_at_the_start_is_checked_before_a_deletion(
    bucket: str, proxy: S3Proxy
) -> None:
    async def out(_request: Request) -> bytes | None:
        return answer(503, "SlowDown")

    owner().put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    proxy.meddle = out
    async with S3Store(s3_settings(bucket, s3_endpoint=proxy.url)) as store:
        proxy.meddle = None
        assert await store.versioning()
        with pytest.raises(StoreVersioned):
            await store.delete_many([KEY])
        with pytest.raises(StoreVersioned):
            await store.delete(KEY)


async def test_a_bucket_that_is_not_there_is_told() -> None:
    with pytest.raises(StoreRefused, match="NoSuchBucket"):
        async with S3Store(s3_settings("no-such-bucket")):
            pass


async def test_tells_its_lifecycle_and_its_time(store: S3Store, bucket: str) -> None:
    assert await store.lifecycle() is None
    rule = {
        "ID": "net",
        "Status": "Enabled",
        "Filter": {"Prefix": "transient/"},
        "Expiration": {"Days": 2},
    }
    owner().put_bucket_lifecycle_configuration(
        Bucket=bucket, LifecycleConfiguration={"Rules": [rule]}
    )
    assert await store.lifecycle() == LifecycleRule(expire_days=2, abort_uploads_days=None)
    assert abs((await store.store_time() - SystemClock().now()).total_seconds()) < 3


# Credentials. ------------------------------------------------------------------------------------


def without_keys(bucket: str) -> S3Settings:
    return s3_settings(bucket, s3_access_key=None, s3_secret_key=None)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """No keys anywhere."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return monkeypatch


async def test_without_keys_of_its_own_the_sdk_finds_some(
    bucket: str, bare: pytest.MonkeyPatch
) -> None:
    bare.setenv("AWS_ACCESS_KEY_ID", server().user.access_key)
    bare.setenv("AWS_SECRET_ACCESS_KEY", server().user.secret_key)
    async with S3Store(without_keys(bucket)) as store:
        await store.put(KEY, b"x")
        assert await store.signing_ends_at() is None
        async with httpx2.AsyncClient(trust_env=False) as http:
            url = await store.presign_get(KEY, expires_in=60)
            assert (await http.get(url)).content == b"x"


async def test_the_end_of_temporary_keys_is_known(bare: pytest.MonkeyPatch) -> None:
    """As a container's role gives them; they are renewed when they are about to end."""
    ends = iter([timedelta(minutes=1), timedelta(hours=1)])
    given: list[datetime] = []

    async def keys(_request: object) -> JSONResponse:
        given.append(SystemClock().now().replace(microsecond=0) + next(ends))
        told = {"AccessKeyId": "AK", "SecretAccessKey": "SK", "Token": "T"}
        return JSONResponse(told | {"Expiration": given[-1].strftime("%Y-%m-%dT%H:%M:%SZ")})

    with served(Starlette(routes=[Route("/keys", keys)]), bound_socket()) as url:
        bare.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{url}/keys")
        clients = S3Clients(S3Settings(s3_bucket="packs"))
        await clients.open()
        try:
            found = await clients.signing_keys()
        finally:
            await clients.close()
    assert len(given) == 2
    assert found.session_token == "T"
    assert found.ends_at == given[-1]


async def test_no_keys_at_all_are_told(bucket: str, bare: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreRefused, match="credentials"):
        async with S3Store(without_keys(bucket)):
            pass


async def test_no_key_and_no_signature_is_in_an_error_or_a_line(
    bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    user = server().user
    wrong = s3_settings(bucket, s3_secret_key=s3_settings(bucket).s3_access_key)
    with caplog.at_level(logging.INFO):
        async with S3Store(s3_settings(bucket)) as store:
            await store.put(KEY, b"x")
            url = await store.presign_get(KEY, expires_in=60)
        with pytest.raises(StoreRefused, match="SignatureDoesNotMatch") as refused:
            async with S3Store(wrong):
                pass
    said = caplog.text + str(refused.value) + repr(refused.value.fields) + repr(store)
    for secret in (user.secret_key, user.access_key, urlsplit(url).query.rpartition("=")[2]):
        assert secret not in said
