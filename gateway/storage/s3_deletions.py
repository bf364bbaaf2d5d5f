"""Deleting many keys from S3: a thousand in one request, or one by one where that is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from botocore.exceptions import ClientError

from gateway.storage.s3_errors import asking, code_of, failure_of, failure_of_code, status_of
from leases.errors import BlobMissing, Failure, StoreUnavailable
from leases.ports import Clock, DeleteOutcome

KEYS_AT_ONCE = 1000  # The limit of one DeleteObjects.
_SINGLE_CALLS_AT_ONCE = 32
# What is not begun by then is left for the next time: a batch has 10 s (delete_timeout).
_SINGLE_CALLS_SECONDS = 6.0
# Answers that mean "not this call", rather than "not now" or "not this key".
_REFUSALS = frozenset({"NotImplemented", "MethodNotAllowed", "AccessDenied"})

Outcome = DeleteOutcome | Exception

_log = structlog.get_logger(__name__)


class S3Deletions:
    """Deletes by one client, and remembers whether it may delete many at once."""

    def __init__(self, client: Any, *, bucket: str, clock: Clock) -> None:
        self._client = client
        self._bucket = bucket
        self._clock = clock
        self.singly = False

    async def delete(self, key: str) -> DeleteOutcome:
        """Delete one blob; S3 does not tell whether there was one.

        Errors: the store's.
        """
        with asking("delete"):
            try:
                await self._client.delete_object(Bucket=self._bucket, Key=key)
            except ClientError as error:
                # Nothing else that is 404: a wrong address would make every blob look deleted.
                if code_of(error) != "NoSuchKey":
                    raise
        return DeleteOutcome.DELETED

    async def delete_many(self, keys: Sequence[str]) -> Mapping[str, Outcome]:
        """Delete blobs; an outcome or a failure for every key."""
        outcomes: dict[str, Outcome] = {}
        distinct = list(dict.fromkeys(keys))
        for start in range(0, len(distinct), KEYS_AT_ONCE):
            chunk = distinct[start : start + KEYS_AT_ONCE]
            if not self.singly:
                outcomes |= await self._delete_at_once(chunk)
            if self.singly:
                outcomes |= await self._delete_singly(chunk)
        return outcomes

    async def _delete_at_once(self, keys: Sequence[str]) -> Mapping[str, Outcome]:
        # Not quiet: a key is gone when the store has said so, not when it said nothing.
        wanted = {"Objects": [{"Key": key} for key in keys], "Quiet": False}
        try:
            answer = await self._client.delete_objects(Bucket=self._bucket, Delete=wanted)
        except Exception as error:
            failure = failure_of(error, call="delete")
            if failure is None:
                raise
            if isinstance(error, ClientError) and _is_refusal(error):
                _log.warning("bulk_delete_refused", error=code_of(error))
                self.singly = True
            return dict.fromkeys(keys, failure)
        silent = StoreUnavailable("The store said nothing about this key.")
        outcomes: dict[str, Outcome] = dict.fromkeys(keys, silent)
        for gone in answer.get("Deleted", []):
            outcomes[gone["Key"]] = DeleteOutcome.DELETED
        for failed in answer.get("Errors", []):
            outcomes[failed["Key"]] = _outcome_of(failed)
        return outcomes

    async def _delete_singly(self, keys: Sequence[str]) -> Mapping[str, Outcome]:
        late = StoreUnavailable("There was no time left for this key.")
        outcomes: dict[str, Outcome] = dict.fromkeys(keys, late)
        waiting = iter(keys)
        end_at = self._clock.monotonic() + _SINGLE_CALLS_SECONDS

        async def work() -> None:
            for key in waiting:
                if self._clock.monotonic() > end_at:
                    return
                try:
                    outcomes[key] = await self.delete(key)
                except Failure as failure:
                    outcomes[key] = failure

        async with asyncio.TaskGroup() as group:
            for _ in range(min(_SINGLE_CALLS_AT_ONCE, len(keys))):
                group.create_task(work())
        return outcomes


def _is_refusal(error: ClientError) -> bool:
    return code_of(error) in _REFUSALS or status_of(error) in (405, 501)


def _outcome_of(failed: Mapping[str, str]) -> Outcome:
    """One entry of `Errors`: it raises nothing by itself."""
    code = failed.get("Code", "")
    failure = failure_of_code(code if code.isalnum() else "unknown", call="delete")
    return DeleteOutcome.DELETED if isinstance(failure, BlobMissing) else failure
