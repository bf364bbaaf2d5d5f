"""The store: everything a fetch and a reap ask of it, done once, on a lease of the doctor's own."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx2

from gateway.doctor.finding import Finding, Health, ok, problem, skipped, warning
from gateway.service import Service
from leases.errors import BlobMissing
from leases.ids import new_mpack_id
from leases.lessor import Caller
from leases.model import PREFIX, Lease, LeaseKind
from leases.ports import (
    DeleteOutcome,
    DeletesMany,
    ListsBlobs,
    TellsLifecycle,
    TellsTime,
    TellsVersioning,
)

_CONTENT = b"mpack-gateway doctor " * 50
_RANGE = (10, 30)
_ANSWER_SECONDS_MAX = 10.0
_DAY_SECONDS = 24 * 3600
# A store refuses requests that are dated further away than a quarter of an hour.
_STORE_SKEW_PROBLEM_SECONDS = 600.0


async def look_at_store(service: Service, caller: Caller) -> AsyncIterator[Finding]:
    """Write, read, sign, list and delete; the lease ends with it, whatever fails."""
    mpack_id = new_mpack_id()
    lease = await service.engine.lessor.reserve(
        mpack_id=mpack_id, kind=LeaseKind.PACK, repo_id="", caller=caller
    )
    try:
        wrote = await _tried("put", "bucket and credentials", _put(service, lease))
        yield wrote
        if wrote.health is Health.OK:
            async for finding in _with_blob(service, lease):
                yield finding
    finally:
        # Deleted already; so the reaper finds nothing, and a lease that ends is in the log.
        await service.engine.lessor.revoke(mpack_id, reason="examined by the doctor", caller=caller)


async def _with_blob(service: Service, lease: Lease) -> AsyncIterator[Finding]:
    yield await _tried("ranged read", "the store must answer ranges", _read(service, lease))
    if isinstance(service.store, ListsBlobs):
        yield await _tried("list", "allow listing the bucket", _listed(service, lease))
    if service.store.supports_presign:
        async for finding in _by_url(service, lease):
            yield finding
    else:
        yield skipped("signed URL", "this store has none; packs are answered inline")
    yield await _tried("delete twice", "allow deleting", _deleted_twice(service, lease))
    if isinstance(service.store, DeletesMany):
        yield await _tried("delete in bulk", "allow deleting", _deleted_many(service, lease))


async def _tried(check: str, mend: str, work: Awaitable[str | Finding]) -> Finding:
    """What the work saw; whatever a store raises is a problem, told by its kind alone."""
    try:
        seen = await work
    except Exception as error:  # noqa: BLE001  a store's words may repeat a signed URL
        code = getattr(error, "code", type(error).__name__)
        return problem(check, f"it failed ({code})", mend=f"See that it answers; {mend}.")
    return seen if isinstance(seen, Finding) else ok(check, seen)


async def _put(service: Service, lease: Lease) -> str:
    await service.store.put(lease.storage_key, _CONTENT)
    return f"{len(_CONTENT)} bytes stored"


async def _read(service: Service, lease: Lease) -> str | Finding:
    start, stop = _RANGE
    if await service.store.get(lease.storage_key, start, stop) != _CONTENT[start:stop]:
        return problem("ranged read", "other bytes came back", mend="Ask the store's maker.")
    return "the bytes that were asked for"


async def _listed(service: Service, lease: Lease) -> str | Finding:
    assert isinstance(service.store, ListsBlobs)
    async for blob in service.store.list(lease.storage_key):
        if blob.key == lease.storage_key:
            return "what was stored is listed"
    return warning(
        "list",
        "what was stored is not listed yet",
        mend="Use a store that lists what it holds: reconcile relies on it.",
    )


async def _by_url(service: Service, lease: Lease) -> AsyncIterator[Finding]:
    """As a client reads: a range by URL, then a tampered and an expired URL."""
    async with httpx2.AsyncClient(timeout=_ANSWER_SECONDS_MAX, trust_env=False) as http:
        url = await service.store.presign_get(lease.storage_key, expires_in=60)
        start, stop = _RANGE
        try:
            answer = await http.get(url, headers={"Range": f"bytes={start}-{stop - 1}"})
        except httpx2.HTTPError as error:
            yield _unreachable(service, type(error).__name__)
            return
        if answer.status_code == 206 and answer.content == _CONTENT[start:stop]:
            yield ok("signed URL", "a range of it can be read")
        else:
            yield problem(
                "signed URL",
                f"the answer was {answer.status_code}",
                mend="Set MPACK_PUBLIC_URL or MPACK_S3_PUBLIC_ENDPOINT to what clients reach,"
                " and the clocks right.",
            )
        tampered = await http.get(url[:-1] + ("0" if url[-1] != "0" else "1"))
        yield _refused("tampered URL", tampered.status_code)
        yield _refused("expired URL", await _after_its_end(service, lease, http))


def _unreachable(service: Service, error: str) -> Finding:
    if service.settings.s3.s3_bucket is None:
        return skipped(
            "signed URL",
            f"nothing answers at {service.settings.base_url} ({error})",
            "The gateway itself serves them: start it, or set MPACK_PUBLIC_URL.",
        )
    return problem(
        "signed URL",
        f"the public endpoint does not answer ({error})",
        mend="Set MPACK_S3_PUBLIC_ENDPOINT to what clients reach.",
    )


def _refused(check: str, status: int) -> Finding:
    if status == 403:
        return ok(check, "refused")
    return problem(
        check,
        f"the answer was {status}, not 403",
        mend="Do not use this store: nothing would end a URL's life.",
    )


async def _after_its_end(service: Service, lease: Lease, http: httpx2.AsyncClient) -> int:
    url = await service.store.presign_get(lease.storage_key, expires_in=1)
    # The signing time is a whole second, cut off; then the URL's one second, and one for doubt.
    await service.clock.sleep(3.0)
    return (await http.get(url)).status_code


async def _deleted_twice(service: Service, lease: Lease) -> str | Finding:
    await service.store.delete(lease.storage_key)
    await service.store.delete(lease.storage_key)
    try:
        await service.store.get(lease.storage_key)
    except BlobMissing:
        return "gone, and deleting it again is no error"
    return problem("delete twice", "it is still there", mend="See what keeps deleted blobs.")


async def _deleted_many(service: Service, lease: Lease) -> str | Finding:
    assert isinstance(service.store, DeletesMany)
    await service.store.put(lease.storage_key, _CONTENT)
    answers = await service.store.delete_many([lease.storage_key])
    if not isinstance(answers.get(lease.storage_key), DeleteOutcome):
        return problem("delete in bulk", "it was refused", mend="Allow deleting below transient/.")
    return "one answer for every key"


# What the bucket says of itself. -----------------------------------------------------------------


async def look_at_bucket(service: Service) -> AsyncIterator[Finding]:
    """Versions, lifecycle, clock: what a store that has them can be asked."""
    asked: tuple[tuple[str, str, bool, Callable[[Service], Awaitable[str | Finding]]], ...] = (
        ("versioning", "allow s3:GetBucketVersioning", isinstance(service.store, TellsVersioning),
         _versioning),
        ("lifecycle rule", "allow s3:GetLifecycleConfiguration",
         isinstance(service.store, TellsLifecycle), _lifecycle),
        ("store's clock", "allow s3:ListBucket", isinstance(service.store, TellsTime), _store_time),
    )  # fmt: skip
    for check, mend, can, look in asked:
        if can:
            yield await _tried(check, mend, look(service))
        else:
            yield skipped(check, "this store has none")


async def _versioning(service: Service) -> str | Finding:
    assert isinstance(service.store, TellsVersioning)
    if await service.store.versioning():
        return problem(
            "versioning",
            "the bucket keeps what is deleted",
            mend="Use a bucket that never had versioning switched on.",
        )
    return "off: what is deleted is gone"


async def _lifecycle(service: Service) -> str | Finding:
    assert isinstance(service.store, TellsLifecycle)
    rule = await service.store.lifecycle()
    longest = service.settings.lease.lease_life_max_seconds
    days = math.ceil(longest / _DAY_SECONDS) + 1
    advice = f"Expire {PREFIX} after {days} days, and abort uploads there after as many."
    if rule is None or rule.expire_days is None:
        return warning("lifecycle rule", "there is no last net below transient/", mend=advice)
    seen = f"below {PREFIX} blobs go after {rule.expire_days} days"
    if rule.expire_days * _DAY_SECONDS < longest:
        return problem("lifecycle rule", f"{seen}, before their leases may end", mend=advice)
    if rule.abort_uploads_days is None:
        return warning("lifecycle rule", f"{seen}; unfinished uploads stay", mend=advice)
    return f"{seen}, unfinished uploads after {rule.abort_uploads_days}"


async def _store_time(service: Service) -> str | Finding:
    assert isinstance(service.store, TellsTime)
    before = service.engine.database_clock.now()
    told = await service.store.store_time()
    now = service.engine.database_clock.now()
    # Told to the second, cut off, at some moment between asking and the answer.
    ahead = (told - now).total_seconds()
    behind = (before - told).total_seconds() - 1
    skew = max(ahead, behind, 0.0)
    seen = f"within {skew:.1f} s of the database's"
    if skew > _STORE_SKEW_PROBLEM_SECONDS:
        return problem("store's clock", seen, mend="Let it keep time by NTP.")
    if skew > service.settings.lease.clock_skew_max_seconds:
        return warning("store's clock", seen, mend="Let it keep time by NTP.")
    return seen
