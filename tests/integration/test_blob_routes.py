"""The local store's URLs over real HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import resource
import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from gateway.storage.local import LocalStore
from tests.integration.storage_adapters import UPLOAD_BYTES_MAX, blob_app
from tests.loopback import bound_socket, served, url_of

KEY = "transient/log/one"
CONTENT = bytes(range(256)) * 4000


class Moment:
    """A clock a test sets."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 23, 12, 0, 0, 500_000, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Moment:
    return Moment()


@pytest.fixture
async def store(tmp_path: Path, clock: Moment) -> AsyncIterator[LocalStore]:
    listening = bound_socket()
    async with LocalStore(tmp_path / "blobs", public_url=url_of(listening), clock=clock) as opened:
        await opened.put(KEY, CONTENT)
        with served(blob_app(opened), listening):
            yield opened


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient() as opened:
        yield opened


@pytest.fixture
async def url(store: LocalStore) -> str:
    return await store.presign_get(KEY, expires_in=60)


async def test_the_whole_blob_and_its_headers(client: httpx2.AsyncClient, url: str) -> None:
    answer = await client.get(url)
    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert answer.headers["content-length"] == str(len(CONTENT))
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["cache-control"] == "private, no-store"
    assert answer.headers["etag"].startswith('"')


async def test_head_tells_the_size_and_sends_nothing(client: httpx2.AsyncClient, url: str) -> None:
    answer = await client.head(url, headers={"Range": "bytes=0-1"})
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == str(len(CONTENT))


@pytest.mark.parametrize(
    "header, start, stop",
    [
        ("bytes=0-0", 0, 1),
        ("bytes=5-", 5, len(CONTENT)),
        ("bytes=-7", len(CONTENT) - 7, len(CONTENT)),
        ("bytes=300000-900000", 300_000, 900_001),
        (f"bytes=9-{len(CONTENT) + 9}", 9, len(CONTENT)),
    ],
)
async def test_a_range(
    client: httpx2.AsyncClient, url: str, header: str, start: int, stop: int
) -> None:
    answer = await client.get(url, headers={"Range": header})
    assert (answer.status_code, answer.content) == (206, CONTENT[start:stop])
    assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(CONTENT)}"
    assert answer.headers["content-length"] == str(stop - start)


async def test_a_range_beyond_the_end(client: httpx2.AsyncClient, url: str) -> None:
    answer = await client.get(url, headers={"Range": f"bytes={len(CONTENT)}-"})
    assert answer.status_code == 416
    assert answer.json()["code"] == "range_unsatisfiable"
    assert answer.headers["content-range"] == f"bytes */{len(CONTENT)}"


async def test_a_download_is_resumed_only_on_the_same_blob(
    client: httpx2.AsyncClient, store: LocalStore, url: str
) -> None:
    etag = (await client.head(url)).headers["etag"]
    resume = {"Range": "bytes=10-19", "If-Range": etag}
    assert (await client.get(url, headers=resume)).status_code == 206
    await store.put(KEY, CONTENT)
    assert (await client.get(url, headers=resume)).status_code == 200


async def test_a_known_blob_is_not_sent_again(client: httpx2.AsyncClient, url: str) -> None:
    etag = (await client.head(url)).headers["etag"]
    answer = await client.get(url, headers={"If-None-Match": etag, "Range": "bytes=0-1"})
    assert (answer.status_code, answer.content) == (304, b"")
    assert answer.headers["etag"] == etag
    assert (await client.get(url, headers={"If-None-Match": '"other"'})).status_code == 200


async def test_an_empty_blob(client: httpx2.AsyncClient, store: LocalStore) -> None:
    await store.put("empty", b"")
    url = await store.presign_get("empty", expires_in=60)
    answer = await client.get(url)
    assert (answer.status_code, answer.headers["content-length"]) == (200, "0")
    assert (await client.get(url, headers={"Range": "bytes=0-"})).status_code == 416


async def test_dead_from_its_second_on(client: httpx2.AsyncClient, url: str, clock: Moment) -> None:
    clock.now += timedelta(seconds=59.499)
    assert (await client.head(url)).status_code == 200
    clock.now += timedelta(seconds=0.001)
    answer = await client.get(url)
    assert (answer.status_code, answer.json()["code"]) == (403, "url_expired")


async def test_no_refusal_repeats_the_signature(
    client: httpx2.AsyncClient, url: str, clock: Moment
) -> None:
    signature = url.rpartition("=")[2]
    tampered = await client.get(url.replace("expires=1", "expires=2"))
    clock.now += timedelta(minutes=2)
    expired = await client.get(url)
    assert (tampered.status_code, tampered.json()["code"]) == (403, "url_tampered")
    assert tampered.json()["message"] != expired.json()["message"]
    for answer in (tampered, expired):
        assert signature not in answer.text + str(answer.headers)


@pytest.mark.parametrize(
    "change",
    [
        lambda url: url.partition("?")[0],
        lambda url: url.partition("&")[0],
        lambda url: url + "&expires=1",
        lambda url: url + "&" + url.rpartition("&")[2],
        lambda url: url.replace("signature=", "signature=%C3%A9"),
        lambda url: url.replace(KEY, "transient/log/absent"),
        lambda url: url.replace(KEY, "transient/log/../log/one"),
        lambda url: url.replace(KEY, "transient/log/%2e%2e/log/one"),
        lambda url: url.replace(KEY, "..%2f.signing-key"),
        lambda url: url.replace(KEY, ".signing-key"),
    ],
)
async def test_a_changed_url_learns_nothing(url: str, change: object) -> None:
    """Raw over a socket: HTTP clients tidy such paths up before sending them."""
    assert callable(change)
    parts = urlsplit(str(change(url)))
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    writer.write(f"GET {target} HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b"url_tampered" in answer


async def test_a_deleted_blob_is_not_found(
    client: httpx2.AsyncClient, store: LocalStore, url: str
) -> None:
    await store.delete(KEY)
    answer = await client.get(url)
    assert (answer.status_code, answer.json()["code"]) == (404, "blob_missing")


async def test_a_download_under_way_outlives_deletion_and_expiry(
    client: httpx2.AsyncClient, store: LocalStore, clock: Moment
) -> None:
    """More than the socket buffers hold, so that the server is still reading."""
    digest = hashlib.sha256()
    await store.put("large", blocks(48))
    url = await store.presign_get("large", expires_in=1)
    async with client.stream("GET", url) as answer:
        await store.delete("large")
        clock.now += timedelta(minutes=1)
        async for chunk in answer.aiter_bytes():
            digest.update(chunk)
    expected = hashlib.sha256()
    async for block in blocks(48):
        expected.update(block)
    assert digest.digest() == expected.digest()
    assert (await client.get(url)).status_code == 403


async def test_memory_stays_flat(client: httpx2.AsyncClient, store: LocalStore) -> None:
    """The peak of the process may not grow by anything like the blob."""
    megabytes = 256
    await store.put("large", blocks(8))
    await read_away(client, await store.presign_get("large", expires_in=60))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    await store.put("larger", blocks(megabytes))
    await read_away(client, await store.presign_get("larger", expires_in=60))
    grown_bytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown_bytes < megabytes * 1024 * 1024 / 4


async def test_a_caller_who_hangs_up_leaves_no_open_file(
    client: httpx2.AsyncClient, store: LocalStore, tmp_path: Path
) -> None:
    await store.put("large", blocks(48))
    url = await store.presign_get("large", expires_in=60)
    parts = urlsplit(url)
    assert parts.hostname is not None
    for _ in range(5):
        with socket.create_connection((parts.hostname, parts.port)) as hanging:
            target = f"{parts.path}?{parts.query}"
            hanging.sendall(f"GET {target} HTTP/1.1\r\nHost: gateway\r\n\r\n".encode())
            assert hanging.recv(1000).startswith(b"HTTP/1.1 200")
    async with asyncio.timeout(10):
        while open_files(tmp_path):
            await client.head(url)  # Any round trip lets the server see the closed connections.


def open_files(folder: Path) -> list[Path]:
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = descriptor.readlink()
        except FileNotFoundError:
            continue
        if target.is_relative_to(folder):
            found.append(target)
    return found


async def blocks(megabytes: int) -> AsyncIterator[bytes]:
    for number in range(megabytes):
        yield bytes([number % 256]) * 1024 * 1024


async def read_away(client: httpx2.AsyncClient, url: str) -> None:
    async with client.stream("GET", url) as answer:
        async for _chunk in answer.aiter_bytes(64 * 1024):
            pass


# PUT. ---------------------------------------------------------------------------------------------


async def test_an_upload_is_stored_under_its_url_alone(
    client: httpx2.AsyncClient, store: LocalStore
) -> None:
    url = await store.presign_put("put", expires_in=60)
    put = await client.put(url, content=b"once")
    assert (put.status_code, put.content) == (200, b"")
    assert await store.get("put") == b"once"
    assert (await client.put(url, content=b"again")).status_code == 200
    assert await store.get("put") == b"again"


async def test_a_url_is_good_for_its_own_method(
    client: httpx2.AsyncClient, store: LocalStore, url: str, clock: Moment
) -> None:
    upload = await store.presign_put("put", expires_in=60)
    assert (await client.put(url, content=b"x")).status_code == 403
    assert (await client.get(upload)).status_code == 403
    assert (await client.delete(upload)).status_code == 405
    other = upload.replace("/put?", f"/{KEY}?")
    assert (await client.put(other, content=b"x")).status_code == 403
    clock.now += timedelta(seconds=60)
    assert (await client.put(upload, content=b"x")).status_code == 403
    assert await store.get(KEY) == CONTENT
    assert [blob.key async for blob in store.list("")] == [KEY]


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
async def test_an_upload_over_the_limit_stores_nothing(
    client: httpx2.AsyncClient, store: LocalStore, tmp_path: Path, declared: bool
) -> None:
    upload = await store.presign_put("put", expires_in=60)

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, UPLOAD_BYTES_MAX + 1, 100_000):
            yield bytes(min(100_000, UPLOAD_BYTES_MAX + 1 - start))

    body = bytes(UPLOAD_BYTES_MAX + 1) if declared else pieces()
    refused = await client.put(upload, content=body)
    assert refused.status_code == 413
    assert [blob.key async for blob in store.list("")] == [KEY]
    assert (await client.put(upload, content=bytes(UPLOAD_BYTES_MAX))).status_code == 200
