"""Calls to a blob store whose author we may not know: whatever it raises means one thing here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gateway.errors import IncompleteRepo
from leases.errors import BlobMissing, Failure, StoreUnavailable
from leases.ports import BlobStore


@contextmanager
def store_call(name: str) -> Iterator[None]:
    """Translate what a store raises.

    Errors: StoreUnavailable for anything that is not one of our own failures already. The store's
            words stay out of it: they may repeat a signed URL.
    """
    try:
        yield
    except Failure:
        raise
    except Exception as error:
        raise StoreUnavailable(call=name, cause=type(error).__name__) from error


async def stored_range(store: BlobStore, key: str, start: int | None, stop: int | None) -> bytes:
    """The bytes `[start, stop)` of a durable blob.

    Errors: IncompleteRepo when it is gone; StoreUnavailable.
    """
    try:
        with store_call("get"):
            return await store.get(key, start, stop)
    except BlobMissing as error:
        raise IncompleteRepo(storage_key=key) from error
