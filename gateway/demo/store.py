"""The store of the demonstration, looked at past the gateway: the disk itself, or the bucket."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from gateway.demo.rados_gateway import REGION, RadosGateway

BUCKET = "demo"


class DemoStore(Protocol):
    """Where the blobs are. `blob` and `place` are the words for one, and for where it lies."""

    title: str
    blob: str
    place: str

    def has(self, key: str) -> bool: ...

    def secrets(self) -> list[str]: ...

    def settings(self) -> Mapping[str, str]: ...

    def pids(self) -> list[int]: ...

    def close(self) -> None: ...


class Disk:
    """The gateway's own folder."""

    title = "A gateway with a PostgreSQL and a store of its own, as a real process"
    blob, place = "file", "disk"

    def __init__(self, folder: Path) -> None:
        self._folder = folder  # A blob's key is its path below it.

    def has(self, key: str) -> bool:
        """Whether the file is there."""
        return (self._folder / key).exists()

    def secrets(self) -> list[str]:
        """Nothing but the token and the URLs."""
        return []

    def settings(self) -> Mapping[str, str]:
        """`dev` knows its folder."""
        return {}

    def pids(self) -> list[int]:
        """No process of its own."""
        return []

    def close(self) -> None:
        """Nothing to end."""


class S3Bucket:
    """A bucket of a real S3 server, started for the occasion.

    Errors: RadosGatewayMissing, which says what to install.
    """

    title = "A gateway with a PostgreSQL of its own and a real S3 (Ceph), as a real process"
    blob, place = "object", "bucket"

    def __init__(self, folder: Path) -> None:
        self._server = RadosGateway(folder)
        self._server.start()
        self._pids = self._server.pids
        self._client: Any = None
        try:
            self._client = self._connect()
            self._client.create_bucket(Bucket=BUCKET)
        except BaseException:
            self.close()
            raise

    def has(self, key: str) -> bool:
        """Whether the object is there, by the owner's keys and not by the gateway's word."""
        found = self._client.list_objects_v2(Bucket=BUCKET, Prefix=key, MaxKeys=1)
        return any(item["Key"] == key for item in found.get("Contents", ()))

    def secrets(self) -> list[str]:
        """The keys, which nobody may read in a log."""
        return [self._server.user.access_key, self._server.user.secret_key]

    def settings(self) -> Mapping[str, str]:
        """What makes a gateway use it."""
        return {
            "MPACK_S3_BUCKET": BUCKET,
            "MPACK_S3_ENDPOINT": self._server.endpoint,
            "MPACK_S3_REGION": REGION,
            "MPACK_S3_ACCESS_KEY": self._server.user.access_key,
            "MPACK_S3_SECRET_KEY": self._server.user.secret_key,
        }

    def pids(self) -> list[int]:
        """The server's processes that still live."""
        return [pid for pid in self._pids if Path(f"/proc/{pid}").exists()]

    def close(self) -> None:
        """End the server; what it held is gone."""
        if self._client is not None:
            self._client.close()
        self._server.stop()

    def _connect(self) -> Any:
        import botocore.session
        from botocore.config import Config

        user = self._server.user
        return botocore.session.Session().create_client(
            "s3",
            endpoint_url=self._server.endpoint,
            region_name=REGION,
            aws_access_key_id=user.access_key,
            aws_secret_access_key=user.secret_key,
            config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
        )


def open_store(kind: Literal["local", "s3"], gateway_folder: Path, scratch: Path) -> DemoStore:
    """The store of this kind; an S3 server is started."""
    return S3Bucket(scratch / "s3") if kind == "s3" else Disk(gateway_folder / "store")
