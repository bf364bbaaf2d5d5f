"""A blob on its way into S3: one PUT while it fits into one part, a multipart upload beyond that.

Memory holds a few parts, however large the blob is. Whatever goes wrong, the upload is aborted; if
that fails too, the reaper does it at the lease's end, and the bucket's lifecycle rule after that.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import structlog
from botocore.exceptions import ClientError

from gateway.storage.s3_errors import asking, code_of, failure_of
from gateway.together import together
from leases.errors import Failure, InvalidRequest, StoreUnavailable

PART_BYTES = 8 * 1024 * 1024  # S3 takes 5 MiB or more, and 10,000 of them: 78 GiB.
PARTS_MAX = 10_000
_PARTS_AT_ONCE = 3
_ABORT_SECONDS = 5.0  # A put's deadline is 10 s before its lease's.
# No cache on the way may keep what is deleted here.
_HEADERS = {"CacheControl": "private, no-store", "ContentType": "application/octet-stream"}

_log = structlog.get_logger(__name__)


class Upload:
    """One blob's way in, by one client."""

    def __init__(self, client: Any, *, bucket: str, key: str) -> None:
        self._client = client
        self._key = key
        self._place = {"Bucket": bucket, "Key": key}

    async def send(self, data: bytes | AsyncIterator[bytes]) -> None:
        """Store the blob whole, or nothing.

        Errors: the store's; the source's own, as they are.
        """
        async with aclosing(_parts(data)) as parts:
            first = await anext(parts)
            second = await anext(parts, None)
            if second is None:
                with asking("put"):
                    await self._client.put_object(Body=first, **self._place, **_HEADERS)
            else:
                await self._send_parts(parts, [first, second])

    async def _send_parts(self, rest: AsyncIterator[bytes], begun: list[bytes]) -> None:
        with asking("put"):
            started = await self._client.create_multipart_upload(**self._place, **_HEADERS)
        upload = {**self._place, "UploadId": started["UploadId"]}
        try:
            sent = _SentParts(self._client, upload)
            await sent.send_all(begun, rest)
            await self._complete(upload, sent)
        except BaseException:
            await self._abort(upload)
            raise

    async def _complete(self, upload: dict[str, str], sent: _SentParts) -> None:
        try:
            await self._client.complete_multipart_upload(
                MultipartUpload={"Parts": sent.in_order()}, **upload
            )
        except Exception as error:
            if (failure := failure_of(error, call="put")) is None:
                raise
            if not await self._is_complete(error, failure, sent):
                raise failure from None

    async def _is_complete(self, error: Exception, failure: Failure, sent: _SentParts) -> bool:
        """Whether the blob stands there although the answer was lost: the client asked again, and
        the upload was no longer there.
        """
        lost = isinstance(error, ClientError) and code_of(error) == "NoSuchUpload"
        if not lost and not isinstance(failure, StoreUnavailable):
            return False
        with asking("put"):
            try:
                found = await self._client.head_object(**self._place)
            except ClientError:
                return False
        parts = f"-{len(sent.etags)}"
        whole = found["ContentLength"] == sent.size_bytes
        return whole and str(found["ETag"]).strip('"').endswith(parts)

    async def _abort(self, upload: dict[str, str]) -> None:
        try:
            async with asyncio.timeout(_ABORT_SECONDS):
                await self._client.abort_multipart_upload(**upload)
        except Exception as error:
            failure = failure_of(error, call="abort")
            if failure is None:
                raise
            if isinstance(error, ClientError) and code_of(error) == "NoSuchUpload":
                return
            _log.warning("upload_not_aborted", key=self._key, error=failure.code)


class _SentParts:
    """The parts of one upload: sent a few at a time, remembered by number."""

    def __init__(self, client: Any, upload: dict[str, str]) -> None:
        self._client = client
        self._upload = upload
        self._turns = asyncio.Semaphore(_PARTS_AT_ONCE)
        self.etags: dict[int, str] = {}
        self.size_bytes = 0

    async def send_all(self, begun: list[bytes], rest: AsyncIterator[bytes]) -> None:
        async with together() as tasks:
            for number, part in enumerate(begun, start=1):
                await self._start(tasks, number, part)
            number = len(begun)
            async for part in rest:
                number += 1
                await self._start(tasks, number, part)

    def in_order(self) -> list[dict[str, Any]]:
        return [{"PartNumber": number, "ETag": tag} for number, tag in sorted(self.etags.items())]

    async def _start(self, tasks: asyncio.TaskGroup, number: int, part: bytes) -> None:
        if number > PARTS_MAX:
            raise InvalidRequest("A blob is larger than S3 takes in parts of this size.")
        await self._turns.acquire()
        self.size_bytes += len(part)
        tasks.create_task(self._send(number, part))

    async def _send(self, number: int, part: bytes) -> None:
        try:
            with asking("put"):
                answer = await self._client.upload_part(
                    PartNumber=number, Body=part, **self._upload
                )
            self.etags[number] = answer["ETag"]
        finally:
            self._turns.release()


async def _parts(data: bytes | AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """The data in parts of one size, the last one smaller; at least one, also for an empty blob."""
    if isinstance(data, bytes):
        yield data[:PART_BYTES]
        for start in range(PART_BYTES, len(data), PART_BYTES):
            yield data[start : start + PART_BYTES]
        return
    waiting: list[memoryview] = []
    left, empty = PART_BYTES, True
    async for chunk in data:
        rest = memoryview(chunk)
        while len(rest) >= left:
            waiting.append(rest[:left])
            part, waiting, rest = b"".join(waiting), [], rest[left:]
            left, empty = PART_BYTES, False
            yield part
        waiting.append(rest)
        left -= len(rest)
    if left < PART_BYTES or empty:
        yield b"".join(waiting)
