"""The S3 store: blobs in one bucket, read through URLs that the bucket itself honours.

Durable and transient blobs share the bucket under different prefixes. What happens below
`transient/` for the reaper (deleting, listing, aborting uploads) goes by the reaper's client and
credentials, everything else by the builder's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Self

import structlog
from botocore.exceptions import ClientError

from gateway.storage.keys import check_key, check_prefix
from gateway.storage.s3_bucket import is_versioned, lifecycle_rule, time_of
from gateway.storage.s3_clients import S3Clients
from gateway.storage.s3_deletions import S3Deletions
from gateway.storage.s3_errors import StoreRefused, StoreVersioned, asking, code_of, status_of
from gateway.storage.s3_settings import S3Settings
from gateway.storage.s3_signing import Bucket, presigned
from gateway.storage.s3_upload import Upload
from leases.clock import SystemClock
from leases.errors import InvalidRequest, StoreUnavailable
from leases.model import PREFIX
from leases.ports import BlobInfo, Clock, DeleteOutcome, LifecycleRule

LIST_PAGE = 1000  # The most that S3 gives.
_PAGES_MAX = 1_000_000  # A thousand million blobs; a store that turns in circles ends here.

_log = structlog.get_logger(__name__)


class S3Store:
    """A blob store on a bucket. Open it before use; `clock` dates signed URLs (the database's)."""

    supports_presign = True

    def __init__(
        self,
        settings: S3Settings,
        *,
        clock: Callable[[], datetime] | None = None,
        process_clock: Clock | None = None,
    ) -> None:
        assert settings.s3_bucket is not None
        self._name = settings.s3_bucket
        self._public = Bucket(
            url=settings.public_url,
            name=settings.s3_bucket,
            region=settings.s3_region,
            path_style=settings.s3_path_style,
        )
        self._process_clock = process_clock or SystemClock()
        self._clock = clock or self._process_clock.now
        self._clients = S3Clients(settings)
        self._unversioned = False

    def __repr__(self) -> str:
        return f"S3Store({self._name!r})"

    async def open(self) -> Self:
        """Make the clients, and look whether deletions delete.

        Errors: StoreVersioned; StoreRefused without credentials or without the bucket. A store
                that does not answer is no error here: it is looked at before the first deletion.
        """
        await self._clients.open()
        clock, name = self._process_clock, self._name
        self._builds = S3Deletions(self._clients.builder, bucket=name, clock=clock)
        self._reaps = S3Deletions(self._clients.reaper, bucket=name, clock=clock)
        try:
            await self._check_unversioned()
        except StoreUnavailable as failure:
            _log.warning("store_not_checked", error=failure.code, detail=str(failure))
        except BaseException:
            await self.close()
            raise
        return self

    async def close(self) -> None:
        """Close every connection."""
        await self._clients.close()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    async def put(self, key: str, data: bytes | AsyncIterator[bytes]) -> None:
        """Store a blob whole, or nothing; over an older one too.

        Errors: InvalidKey; the store's.
        """
        await Upload(self._clients.builder, bucket=self._name, key=check_key(key)).send(data)

    async def get(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        """The bytes of `[start, stop)`, cut at the blob's end.

        Errors: BlobMissing (not told for an empty range); the store's.
        """
        first = 0 if start is None else start
        if first < 0 or (stop is not None and stop < first):
            raise InvalidRequest("A range runs forward from 0.", start=start, stop=stop)
        if stop == first:
            return b""
        place = {"Bucket": self._name, "Key": check_key(key)}
        ranged = first > 0 or stop is not None
        if ranged:
            place["Range"] = f"bytes={first}-{'' if stop is None else stop - 1}"
        with asking("get"):
            try:
                answer = await self._clients.builder.get_object(**place)
            except ClientError as error:
                if status_of(error) == 416:
                    return b""
                raise
            async with answer["Body"] as body:
                data: bytes = await body.read()
        if ranged and answer["ResponseMetadata"]["HTTPStatusCode"] != 206:
            return data[first:stop]  # A server may leave a range unheeded.
        return data

    async def head(self, key: str) -> BlobInfo | None:
        """Size and time of a blob, None where there is none."""
        with asking("head"):
            try:
                found = await self._clients.builder.head_object(
                    Bucket=self._name, Key=check_key(key)
                )
            except ClientError as error:
                if status_of(error) == 404:
                    return None
                raise
        return BlobInfo(
            key=key, size_bytes=found["ContentLength"], modified_at=found["LastModified"]
        )

    async def list(self, prefix: str) -> AsyncIterator[BlobInfo]:
        """Every blob whose key starts with this, in pages.

        Errors: the store's.
        """
        client = self._client_for(check_prefix(prefix))
        more: dict[str, str] = {}
        for _ in range(_PAGES_MAX):
            with asking("list"):
                page = await client.list_objects_v2(
                    Bucket=self._name, Prefix=prefix, MaxKeys=LIST_PAGE, **more
                )
            for item in page.get("Contents", ()):
                yield BlobInfo(
                    key=item["Key"], size_bytes=item["Size"], modified_at=item["LastModified"]
                )
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}
        raise StoreUnavailable("The store's listing does not end.")

    async def delete(self, key: str) -> DeleteOutcome:
        """Remove a blob; one that is gone already is a success.

        Errors: the store's; StoreVersioned.
        """
        await self._check_unversioned()
        return await self._deletions_for(check_key(key)).delete(key)

    async def delete_many(self, keys: Sequence[str]) -> Mapping[str, DeleteOutcome | Exception]:
        """Remove blobs; an outcome or a failure for every key."""
        if not keys:
            return {}
        await self._check_unversioned()
        outcomes: dict[str, DeleteOutcome | Exception] = {}
        for deletions in (self._reaps, self._builds):
            own = [key for key in keys if self._deletions_for(check_key(key)) is deletions]
            outcomes |= await deletions.delete_many(own)
        return outcomes

    async def abort_uploads(self, key: str) -> int:
        """Abort every unfinished upload of this key; how many there were.

        Errors: the store's.
        """
        client, aborted = self._client_for(check_key(key)), 0
        more: dict[str, str] = {}
        for _ in range(_PAGES_MAX):
            with asking("abort"):
                page = await client.list_multipart_uploads(Bucket=self._name, Prefix=key, **more)
            for upload in page.get("Uploads", ()):
                if upload["Key"] == key:
                    aborted += await self._abort(client, key, upload["UploadId"])
            if not page.get("IsTruncated"):
                return aborted
            more = {
                "KeyMarker": page["NextKeyMarker"],
                "UploadIdMarker": page["NextUploadIdMarker"],
            }
        raise StoreUnavailable("The store's listing does not end.")

    async def presign_get(self, key: str, *, expires_in: int) -> str:
        """A URL to read this blob, dead `expires_in` seconds after the current whole second.

        Errors: InvalidRequest for a life of less than 1 second or more than 7 days.
        """
        return await self._presigned("GET", key, expires_in)

    async def presign_put(self, key: str, *, expires_in: int) -> str:
        """A URL to store this blob once or more often, until it is dead like one to read it."""
        return await self._presigned("PUT", key, expires_in)

    async def versioning(self) -> bool:
        """Whether the bucket keeps what is deleted.

        Errors: the store's.
        """
        return await is_versioned(self._clients.builder, self._name)

    async def lifecycle(self) -> LifecycleRule | None:
        """What the bucket's own rules delete below the transient prefix.

        Errors: the store's.
        """
        return await lifecycle_rule(self._clients.builder, self._name)

    async def store_time(self) -> datetime:
        """What the store's clock shows, to the second.

        Errors: the store's.
        """
        return await time_of(self._clients.builder, self._name)

    async def signing_ends_at(self) -> datetime | None:
        """When the keys that sign URLs now end, and the URLs with them; None: not, or not known.

        Errors: StoreUnavailable when new temporary keys are due and cannot be had.
        """
        return (await self._clients.signing_keys()).ends_at

    async def _presigned(self, method: str, key: str, expires_in: int) -> str:
        keys = await self._clients.signing_keys()
        return presigned(
            method,
            check_key(key),
            bucket=self._public,
            keys=keys,
            signed_at=self._clock(),
            expires_in=expires_in,
        )

    async def _abort(self, client: Any, key: str, upload_id: str) -> int:
        with asking("abort"):
            try:
                await client.abort_multipart_upload(Bucket=self._name, Key=key, UploadId=upload_id)
            except ClientError as error:
                if code_of(error) != "NoSuchUpload":
                    raise
                return 0
        return 1

    async def _check_unversioned(self) -> None:
        """Once in a process: what is deleted from a versioned bucket is still there."""
        if self._unversioned:
            return
        try:
            versioned = await self.versioning()
        except StoreRefused as refusal:
            if not await self._exists():
                raise
            _log.warning("versioning_unknown", error=str(refusal))
            versioned = False
        if versioned:
            raise StoreVersioned(bucket=self._name)
        self._unversioned = True

    async def _exists(self) -> bool:
        """Whether the bucket is there and is shown to us: then a refusal is about the one call."""
        with asking("bucket"):
            try:
                await self._clients.builder.head_bucket(Bucket=self._name)
            except ClientError as error:
                if status_of(error) in (403, 404):
                    return False
                raise
        return True

    def _client_for(self, key_or_prefix: str) -> Any:
        ours = key_or_prefix.startswith(PREFIX)
        return self._clients.reaper if ours else self._clients.builder

    def _deletions_for(self, key: str) -> S3Deletions:
        return self._reaps if key.startswith(PREFIX) else self._builds


__all__ = ["S3Settings", "S3Store", "StoreRefused", "StoreVersioned"]
