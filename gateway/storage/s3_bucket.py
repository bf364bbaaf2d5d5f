"""What a bucket says about itself: versions, lifecycle, its clock."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

from botocore.exceptions import ClientError

from gateway.storage.s3_errors import asking, code_of
from leases.model import PREFIX
from leases.ports import LifecycleRule


async def is_versioned(client: Any, bucket: str) -> bool:
    """Whether it keeps, or once kept, what is deleted.

    Errors: the store's; StoreRefused where the credentials may not ask.
    """
    with asking("versioning"):
        answer = await client.get_bucket_versioning(Bucket=bucket)
    return bool(answer.get("Status"))


async def lifecycle_rule(client: Any, bucket: str) -> LifecycleRule | None:
    """What its rules do below the transient prefix, all of them together; None: nothing.

    Errors: the store's.
    """
    with asking("lifecycle"):
        try:
            answer = await client.get_bucket_lifecycle_configuration(Bucket=bucket)
        except ClientError as error:
            if code_of(error) == "NoSuchLifecycleConfiguration":
                return None
            raise
    rules = [rule for rule in answer.get("Rules", ()) if _concerns_transient(rule)]
    expire = min(_days(rules, "Expiration", "Days"), default=None)
    abort = min(_days(rules, "AbortIncompleteMultipartUpload", "DaysAfterInitiation"), default=None)
    if expire is None and abort is None:
        return None
    return LifecycleRule(expire_days=expire, abort_uploads_days=abort)


async def time_of(client: Any, bucket: str) -> datetime:
    """The store's time, as it dates its answers: to the second, cut off.

    Errors: the store's.
    """
    with asking("time"):
        answer = await client.head_bucket(Bucket=bucket)
    return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])


def _concerns_transient(rule: Mapping[str, Any]) -> bool:
    """Whether it is in force for every blob below the prefix, whatever its size or tags."""
    chosen = rule.get("Filter", {})
    prefix = chosen.get("Prefix", rule.get("Prefix", ""))
    narrowed = set(chosen) - {"Prefix"}
    return rule["Status"] == "Enabled" and not narrowed and PREFIX.startswith(prefix)


def _days(rules: list[Mapping[str, Any]], action: str, name: str) -> Iterator[int]:
    return (rule[action][name] for rule in rules if name in rule.get(action, {}))
