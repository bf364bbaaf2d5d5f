"""The store of a test's gateways: a folder, or with TEST_STORE=s3 a bucket of a real server.

A test names a folder either way; on S3 a bucket stands for it, the same one each time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from gateway.storage.s3_settings import S3Settings
from leases.model import PREFIX
from leases.owner import OWNER_KEY
from tests.rgw import new_bucket, owner, s3_settings, server

ON_S3 = os.environ.get("TEST_STORE", "local") == "s3"
_WRITERS = 8
_MARK = OWNER_KEY.rpartition("/")[2]


class StoreView(Protocol):
    """A store seen from outside, past the gateway.

    `keys` takes a whole folder as its prefix; `packs` are the transient blobs but the owner's mark,
    and without any `is_empty`: that is asked often, so it stops at the first one it sees.
    `unfinished` names the uploads that were begun and neither ended nor aborted.
    For the time of `locked(key)` this blob cannot be deleted, and it stands alone in its folder;
    for that of `away()` nobody reaches the store.
    """

    def keys(self, prefix: str) -> set[str]: ...

    def packs(self) -> set[str]: ...

    def is_empty(self) -> bool: ...

    def unfinished(self) -> list[str]: ...

    def write(self, keys: Sequence[str], content: bytes) -> None: ...

    def locked(self, key: str) -> AbstractContextManager[None]: ...

    def away(self) -> AbstractContextManager[None]: ...


def view_of(place: Path) -> StoreView:
    """The store that stands for this folder."""
    return BucketView(bucket_of(place)) if ON_S3 else FolderView(place)


def s3_of(place: Path) -> S3Settings:
    """The settings of the bucket that stands for this folder; none where it is itself the store."""
    return s3_settings(bucket_of(place)) if ON_S3 else S3Settings()


def variables_of(place: Path) -> dict[str, object]:
    """The same as settings for a process, by name."""
    return {"data_dir": place, **s3_of(place).told()}


def bucket_of(place: Path) -> str:
    """A bucket's name for a folder; the bucket is there."""
    return new_bucket(f"test-{sha256(os.fsencode(place)).hexdigest()[:24]}")


class FolderView:
    """A folder of blobs."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def keys(self, prefix: str) -> set[str]:
        found: set[str] = set()
        self._root.stat()  # A store that is away looks empty to the walk.
        for folder, _folders, names in os.walk(self._root / prefix):
            below = os.path.relpath(folder, self._root)
            found.update(f"{below}/{name}" for name in names)
        return found

    def packs(self) -> set[str]:
        return self.keys(PREFIX) - {OWNER_KEY}

    def is_empty(self) -> bool:
        self._root.stat()
        return not any(
            entry.is_file() and entry.name != _MARK for entry in (self._root / PREFIX).rglob("*")
        )

    def unfinished(self) -> list[str]:
        return sorted(path.name for path in (self._root / ".tmp").iterdir())

    def write(self, keys: Sequence[str], content: bytes) -> None:
        for key in keys:
            path = self._root / key
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.write_bytes(content)

    @contextmanager
    def locked(self, key: str) -> Iterator[None]:
        folder = (self._root / key).parent
        folder.chmod(0o500)
        try:
            yield
        finally:
            folder.chmod(0o700)

    @contextmanager
    def away(self) -> Iterator[None]:
        elsewhere = self._root.with_name("away")
        self._root.rename(elsewhere)
        try:
            yield
        finally:
            elsewhere.rename(self._root)


class BucketView:
    """A bucket of the real server, by its owner's keys."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._client: Any = owner()

    def keys(self, prefix: str) -> set[str]:
        found: set[str] = set()
        pages = self._client.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=self._name, Prefix=prefix):
            found.update(item["Key"] for item in page.get("Contents", ()))
        return found

    def packs(self) -> set[str]:
        return self.keys(PREFIX) - {OWNER_KEY}

    def is_empty(self) -> bool:
        told = self._client.list_objects_v2(Bucket=self._name, Prefix=PREFIX, MaxKeys=2)
        return {item["Key"] for item in told.get("Contents", ())} <= {OWNER_KEY}

    def unfinished(self) -> list[str]:
        told = self._client.list_multipart_uploads(Bucket=self._name)
        return [upload["Key"] for upload in told.get("Uploads", ())]

    def write(self, keys: Sequence[str], content: bytes) -> None:
        def put(key: str) -> None:
            self._client.put_object(Bucket=self._name, Key=key, Body=content)

        with ThreadPoolExecutor(_WRITERS) as pool:
            list(pool.map(put, keys))

    @contextmanager
    def locked(self, key: str) -> Iterator[None]:
        refusal = {
            "Effect": "Deny",
            "Principal": "*",
            "Action": "s3:DeleteObject",
            "Resource": f"arn:aws:s3:::{self._name}/{key}",
        }
        policy = {"Version": "2012-10-17", "Statement": [refusal]}
        self._client.put_bucket_policy(Bucket=self._name, Policy=json.dumps(policy))
        try:
            yield
        finally:
            self._client.delete_bucket_policy(Bucket=self._name)

    @contextmanager
    def away(self) -> Iterator[None]:
        server().freeze()
        try:
            yield
        finally:
            server().thaw()
