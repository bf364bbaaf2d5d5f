"""The real S3 server of the tests: one Ceph RADOS Gateway a process, started at its first use.

server()       it; skips the test where it is not installed, and fails it in CI
new_bucket()   an empty bucket's name
s3_settings()  the settings of a store on a bucket
owner()        a plain client with the owner's keys, for what the product never does
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from starlette.datastructures import Secret

from gateway.demo.rados_gateway import (
    REGION,
    RadosGateway,
    RadosGatewayMissing,
    S3User,
    check_installed,
)
from gateway.storage.s3_settings import S3Settings

NO_S3_SERVER = "no S3 server"  # What every skip for want of one says.
_running: list[RadosGateway] = []
_owners: list[Any] = []  # The owner's client: making one takes a quarter of a second.


def server() -> RadosGateway:
    """The server of this process."""
    if not _running:
        check_s3_server()
        folder = Path(tempfile.mkdtemp(prefix="mpg-rgw-"))
        gateway = RadosGateway(folder / "rgw")
        gateway.start()
        _running.append(gateway)
    return _running[0]


def check_s3_server() -> None:
    """Skip the test where no server can be started; in CI that is a failure."""
    try:
        check_installed()
    except RadosGatewayMissing as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"{NO_S3_SERVER}: {missing}")


def stop_server() -> None:
    """Leave nothing running."""
    for client in _owners:
        client.close()
    _owners.clear()
    for gateway in _running:
        gateway.stop()
        shutil.rmtree(gateway.folder.parent, ignore_errors=True)
    _running.clear()


def s3_client(user: S3User | None = None) -> Any:
    """A client that waits for its answers, outside of every loop."""
    import botocore.session  # Not for everybody who runs one test.
    from botocore.config import Config

    gateway = server()
    who = user or gateway.user
    return botocore.session.Session().create_client(
        "s3",
        endpoint_url=gateway.endpoint,
        region_name=REGION,
        aws_access_key_id=who.access_key,
        aws_secret_access_key=who.secret_key,
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            retries={"total_max_attempts": 1},
            request_checksum_calculation="when_required",
        ),
    )


def owner() -> Any:
    """The client of the buckets' owner; it is everybody's, so nobody closes it."""
    if not _owners:
        _owners.append(s3_client())
    return _owners[0]


def new_bucket(name: str | None = None) -> str:
    """An empty bucket; one that is there already and is ours stays as it is."""
    name = name or f"test-{uuid4().hex[:16]}"
    owner().create_bucket(Bucket=name)
    return name


def s3_settings(bucket: str, **changes: Any) -> S3Settings:
    """A store on this bucket, with its owner's keys."""
    user = server().user
    settings = S3Settings(
        s3_bucket=bucket,
        s3_endpoint=server().endpoint,
        s3_region=REGION,
        s3_access_key=Secret(user.access_key),
        s3_secret_key=Secret(user.secret_key),
    )
    return replace(settings, **changes)
