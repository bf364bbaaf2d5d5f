"""Delete a batch of transient blobs, whatever the store can do, and say of each how it went."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

from leases.errors import StoreUnavailable
from leases.model import PREFIX, Lease, LeaseState
from leases.ports import AbortsUploads, BlobStore, DeleteOutcome, DeletesMany

# For calls that take one key: so many at once, and so many deletions in a batch.
_SINGLE_CALLS_AT_ONCE = 16
_SINGLE_DELETES_BATCH = 128
_BATCH_FIRST = 250
_BATCH_LEAST = 16
# Of its limit; beyond it others wait for the record, and a busier minute would cost the batch.
_BATCH_SHARE_OF_TIMEOUT = 0.25


class BatchSize:
    """How many keys are deleted at once: as many as the store deletes in good time.

    A thousand keys take a folder a tenth of a second and an S3 server several; with a dozen workers
    at it more than the limit, and then all of them are asked for again
    (`make bench ARGS=replicas-s3`).
    """

    def __init__(self, most: int, *, seconds_max: float) -> None:
        self._most = most
        self._seconds_max = seconds_max
        self.value = min(_BATCH_FIRST, most)

    def learn(self, count: int, seconds: float) -> None:
        """Take in how long so many keys took, or how long they were waited for in vain."""
        if seconds > self._seconds_max:
            fitting = int(count * self._seconds_max / seconds)
            self.value = min(self.value, max(_BATCH_LEAST, fitting))
        elif count >= self.value:
            self.value = min(2 * self.value, self._most)


class Deletions:
    """Deletes blobs, at most `batch_max` at once within `timeout_seconds`, each key tried once."""

    def __init__(
        self,
        store: BlobStore,
        *,
        batch_max: int,
        timeout_seconds: float,
        monotonic: Callable[[], float],
    ) -> None:
        self._store = store
        self._timeout_seconds = timeout_seconds
        self._monotonic = monotonic
        if not isinstance(store, DeletesMany):
            batch_max = min(batch_max, _SINGLE_DELETES_BATCH)
        self._batch = BatchSize(batch_max, seconds_max=timeout_seconds * _BATCH_SHARE_OF_TIMEOUT)

        self.batch_max = batch_max

    @property
    def batch(self) -> int:
        """How many keys the next batch may hold, so that it ends in time."""
        return self._batch.value

    async def probe(self, key: str) -> None:
        """See whether the store deletes, by a key under which no blob has ever been.

        Errors: the store's, whatever they are.
        """
        assert key.startswith(PREFIX), key
        answer = await self._answer(key)
        if isinstance(answer, BaseException):
            raise answer

    async def delete(self, leases: Sequence[Lease]) -> Mapping[str, DeleteOutcome | BaseException]:
        """Delete every blob; the answer holds an outcome or an exception for every key."""
        for lease in leases:
            assert lease.storage_key.startswith(PREFIX), lease.storage_key
        keys = [lease.storage_key for lease in leases]
        found: dict[str, DeleteOutcome | BaseException] = {}
        began = self._monotonic()
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._abort_uploads(leases, found)
                rest = [key for key in keys if key not in found]
                if isinstance(self._store, DeletesMany):
                    found.update(await self._store.delete_many(rest))
                else:
                    await self._delete_singly(rest, found)
        except Exception as error:  # noqa: BLE001  whatever a host's store raises
            for key in keys:
                found.setdefault(key, error)
        self._batch.learn(len(keys), self._monotonic() - began)
        for key in keys:
            found.setdefault(key, StoreUnavailable("The store said nothing about this key."))
        return found

    async def delete_each(
        self, leases: Sequence[Lease]
    ) -> Mapping[str, DeleteOutcome | BaseException]:
        """Delete every blob by a call of its own, so that each answer is about it alone.

        All share one time limit; a key whose turn did not come is not in the answer.
        """
        found: dict[str, DeleteOutcome | BaseException] = {}
        begun: set[str] = set()
        by_key = {lease.storage_key: lease for lease in leases}

        async def delete(key: str) -> None:
            begun.add(key)
            await self._abort_uploads([by_key[key]], found)
            if key not in found:
                found[key] = await self._answer(key)

        try:
            async with asyncio.timeout(self._timeout_seconds):
                await _each(list(by_key), delete, found)
        except TimeoutError as error:
            for key in begun:
                found.setdefault(key, error)
        return found

    async def _answer(self, key: str) -> DeleteOutcome | BaseException:
        if isinstance(self._store, DeletesMany):
            answers: Mapping[str, DeleteOutcome | BaseException]
            answers = await self._store.delete_many([key])
            return answers.get(key, StoreUnavailable("The store said nothing about this key."))
        # A host's method may return anything; only an exception is a failure.
        outcome: object = await self._store.delete(key)
        return outcome if isinstance(outcome, DeleteOutcome) else DeleteOutcome.DELETED

    async def _abort_uploads(
        self, leases: Sequence[Lease], found: dict[str, DeleteOutcome | BaseException]
    ) -> None:
        """A reservation may have left an unfinished upload, which no deletion removes."""
        if not isinstance(self._store, AbortsUploads):
            return
        store = self._store

        async def abort(key: str) -> None:
            await store.abort_uploads(key)

        reserved = [lease.storage_key for lease in leases if lease.state is LeaseState.RESERVED]
        await _each(reserved, abort, found)

    async def _delete_singly(
        self, keys: Sequence[str], found: dict[str, DeleteOutcome | BaseException]
    ) -> None:
        async def delete(key: str) -> None:
            found[key] = await self._answer(key)

        await _each(keys, delete, found)


async def _each(
    keys: Sequence[str],
    work: Callable[[str], Awaitable[None]],
    failures: dict[str, DeleteOutcome | BaseException],
) -> None:
    """Do it for every key, several at once; a failure is this key's, not the batch's."""
    turns = asyncio.Semaphore(_SINGLE_CALLS_AT_ONCE)

    async def one(key: str) -> None:
        async with turns:
            try:
                await work(key)
            except Exception as error:  # noqa: BLE001  whatever a host's store raises
                failures[key] = error

    async with asyncio.TaskGroup() as group:
        for key in keys:
            group.create_task(one(key))
