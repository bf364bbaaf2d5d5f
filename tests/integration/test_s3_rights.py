"""deploy/s3: the least rights, and the last net, as the server itself enforces them."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from starlette.datastructures import Secret

from gateway.demo.rados_gateway import S3User
from gateway.storage.s3 import S3Store
from leases.database import Database
from leases.ids import new_token
from leases.model import Trigger
from leases.policy import LeasePolicy
from leases.ports import LifecycleRule
from tests.invariants import check_invariants
from tests.leasing import due, engine_on, granted
from tests.rgw import new_bucket, owner, s3_client, s3_settings, server

DEPLOY = Path(__file__).resolve().parents[2] / "deploy/s3"
DURABLE = "segments/one"


@pytest.fixture(scope="module")
def users() -> tuple[S3User, S3User]:
    """A gateway and a reaper, neither of them the bucket's owner."""
    made = (S3User.new(f"gateway-{new_token(4)}"), S3User.new(f"reaper-{new_token(4)}"))
    for user in made:
        server().add_user(user)
    return made


@pytest.fixture
def bucket(users: tuple[S3User, S3User]) -> str:
    """With the policy that is shipped, filled in."""
    name = new_bucket()
    gateway, reaper = (f"arn:aws:iam:::user/{user.name}" for user in users)
    policy = (DEPLOY / "bucket-policy.json").read_text().replace("BUCKET", name)
    policy = policy.replace("GATEWAY_ARN", gateway).replace("REAPER_ARN", reaper)
    owner().put_bucket_policy(Bucket=name, Policy=policy)
    owner().put_object(Bucket=name, Key=DURABLE, Body=b"durable")
    return name


@pytest.fixture
async def store(users: tuple[S3User, S3User], bucket: str) -> AsyncIterator[S3Store]:
    """As it would be set up: the gateway's keys and the reaper's, and no right besides."""
    gateway, reaper = users
    settings = s3_settings(
        bucket,
        s3_access_key=Secret(gateway.access_key),
        s3_secret_key=Secret(gateway.secret_key),
        s3_reaper_access_key=Secret(reaper.access_key),
        s3_reaper_secret_key=Secret(reaper.secret_key),
    )
    async with S3Store(settings) as store:
        yield store


async def test_the_rights_are_enough(database: Database, store: S3Store, bucket: str) -> None:
    async with engine_on(database, store) as engine:
        lease = await granted(engine)
        owner().create_multipart_upload(Bucket=bucket, Key="transient/l/m")
        assert await store.abort_uploads("transient/l/m") == 1
        await due(database, lease)
        assert (await engine.reaper.sweep(Trigger.COMMAND)).reclaimed == 1
        assert (await engine.reconciler.run_once()).findings_count == 0
        await check_invariants(database, store)
    assert not store._reaps.singly, "bulk deletion was refused"
    await store.put("segments/two", b"x")
    await store.delete("segments/two")
    assert await store.get(DURABLE) == b"durable"
    assert await store.lifecycle() is None
    assert not await store.versioning()


FORBIDDEN: dict[str, Callable[[Any, str], object]] = {
    "delete durable data": lambda s3, b: s3.delete_object(Bucket=b, Key=DURABLE),
    "overwrite durable data": lambda s3, b: s3.put_object(Bucket=b, Key=DURABLE, Body=b""),
    "read durable data": lambda s3, b: s3.get_object(Bucket=b, Key=DURABLE),
    "list durable data": lambda s3, b: s3.list_objects_v2(Bucket=b, Prefix="segments/"),
    "list everything": lambda s3, b: s3.list_objects_v2(Bucket=b),
    "change the policy": lambda s3, b: s3.delete_bucket_policy(Bucket=b),
    "change the lifecycle": lambda s3, b: s3.delete_bucket_lifecycle(Bucket=b),
    "delete the bucket": lambda s3, b: s3.delete_bucket(Bucket=b),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_the_reaper_cannot(users: tuple[S3User, S3User], bucket: str, what: str) -> None:
    reaper = s3_client(users[1])
    with pytest.raises(ClientError, match="AccessDenied"):
        FORBIDDEN[what](reaper, bucket)
    reaper.close()


def test_the_reaper_cannot_delete_durable_data_among_others(
    users: tuple[S3User, S3User], bucket: str
) -> None:
    owner().put_object(Bucket=bucket, Key="transient/l/m", Body=b"x")
    reaper = s3_client(users[1])
    named = [{"Key": DURABLE}, {"Key": "transient/l/m"}]
    told = reaper.delete_objects(Bucket=bucket, Delete={"Objects": named})
    reaper.close()
    assert [one["Key"] for one in told["Deleted"]] == ["transient/l/m"]
    assert [(one["Key"], one["Code"]) for one in told["Errors"]] == [(DURABLE, "AccessDenied")]
    assert owner().get_object(Bucket=bucket, Key=DURABLE)["Body"].read() == b"durable"


def test_the_gateway_cannot_delete_what_is_leased(
    users: tuple[S3User, S3User], bucket: str
) -> None:
    owner().put_object(Bucket=bucket, Key="transient/l/m", Body=b"x")
    gateway = s3_client(users[0])
    with pytest.raises(ClientError, match="AccessDenied"):
        gateway.delete_object(Bucket=bucket, Key="transient/l/m")
    gateway.close()


async def test_the_lifecycle_rule_is_taken_and_fits(store: S3Store, bucket: str) -> None:
    rules = json.loads((DEPLOY / "lifecycle.json").read_text())
    owner().put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=rules)
    days = -int(-LeasePolicy().lease_life_max_seconds // 86_400) + 1
    assert await store.lifecycle() == LifecycleRule(expire_days=days, abort_uploads_days=days)


def test_the_policy_has_no_other_place_to_fill_in() -> None:
    text = (DEPLOY / "bucket-policy.json").read_text()
    assert set(re.findall(r"\b[A-Z_]{5,}\b", text)) == {"BUCKET", "GATEWAY_ARN", "REAPER_ARN"}
