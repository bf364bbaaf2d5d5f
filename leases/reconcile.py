"""Compare the transient prefix with the lease table, both ways.

The store is listed first and each key is looked up afterwards: a row stands before its blob, so a
blob that was listed and has no row then never had one that survived.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

import structlog

from leases.decide import decide
from leases.errors import Conflict
from leases.ids import is_mpack_id, mpack_id_time
from leases.ledger import Ledger
from leases.lessor import Caller, lease_stream, new_lease_event
from leases.log import EventLog, NewEvent
from leases.model import PREFIX, AdoptLease, Lease, LeaseState, Outcome, RecordResidue, storage_key
from leases.owner import OWNER_KEY
from leases.policy import LeasePolicy
from leases.ports import BlobInfo, BlobStore, HeadsBlobs, ListsBlobs
from leases.seen import SeenKeys

_PAGE = 1000
# Stores tell a blob's time in whole seconds, cut off.
_STORE_SECONDS = timedelta(seconds=1)
# Above this many listed keys the other direction (rows without blobs) is left out and said so:
# then too many missing blobs would be taken for seen ones (leases/seen.py).
_COMPARED_MAX = 10_000_000
_FINDINGS_MAX = 100


_RECONCILER = Caller(actor="reconcile")
_log = structlog.get_logger(__name__)


class Finding(StrEnum):
    """What a human should know; nothing is deleted for it."""

    FOREIGN_KEY = "foreign_key"
    FORGOTTEN_BLOB = "forgotten_blob"
    BLOB_MISSING = "blob_missing"
    NOT_COMPARED = "not_compared"
    ARCHIVED_BLOB = "archived_blob"


class Verdict(StrEnum):
    """What a listed blob is."""

    EXPECTED = "expected"
    ADOPT = "adopt"
    RESIDUE = "residue"
    FOREIGN = "foreign"
    FORGOTTEN = "forgotten"
    ARCHIVED = "archived"


@dataclass(slots=True, kw_only=True)
class ReconcileResult:
    """What was found and done; `findings` are at most a hundred (kind, key) pairs."""

    listed: int = 0
    adopted: int = 0
    residue_deleted: int = 0
    findings: list[tuple[Finding, str]] = field(default_factory=list)
    findings_count: int = 0

    def find(self, finding: Finding, key: str) -> None:
        """Note a finding; all are counted, the first hundred kept."""
        self.findings_count += 1
        if len(self.findings) < _FINDINGS_MAX:
            self.findings.append((finding, key))


def judge(
    key: str,
    *,
    log_id: str,
    lease: Lease | None,
    archived: bool = False,
) -> Verdict:
    """What a listed key means, given its lease (None: there is none).

    `archived`: there is none, and its stream is known; it ended, perhaps forgotten, long ago.
    """
    mpack_id = key.rpartition("/")[2]
    if not is_mpack_id(mpack_id) or key != storage_key(log_id, mpack_id):
        return Verdict.FOREIGN
    if lease is None:
        return Verdict.ARCHIVED if archived else Verdict.ADOPT
    if lease.state is not LeaseState.RECLAIMED:
        return Verdict.EXPECTED
    return Verdict.FORGOTTEN if lease.outcome is Outcome.FORGOTTEN else Verdict.RESIDUE


class Reconciler:
    """Runs the comparison; only while this log owns the store."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        log: EventLog,
        store: BlobStore,
        policy: LeasePolicy,
        log_id: str,
        replica: str,
    ) -> None:
        self._ledger = ledger
        self._event_log = log
        self._store = store
        self._policy = policy
        self._log_id = log_id
        self._replica = replica

    async def run_once(self, *, dry_run: bool = False) -> ReconcileResult:
        """One comparison, both ways.

        Effects: adopts blobs without rows, deletes blobs of closed leases, each with its event;
                 none with `dry_run`, which counts what it would do.
        Errors: the store's and the database's.
        """
        result = ReconcileResult()
        if not isinstance(self._store, ListsBlobs):
            return result
        started_at = (await self._event_log.head())["now"]
        with closing(SeenKeys()) as seen:
            async for page in _pages(self._store.list(PREFIX)):
                result.listed += len(page)
                await self._look_up(page, started_at, result, dry_run=dry_run)
                for blob in page if result.listed <= _COMPARED_MAX else ():
                    seen.add(blob.key)
            if result.listed <= _COMPARED_MAX:
                await self._find_missing(seen, started_at, result)
            else:
                result.find(Finding.NOT_COMPARED, PREFIX)
        for finding, key in result.findings:
            _log.warning("reconcile_finding", finding=finding.value, key=key)
        return result

    async def _look_up(
        self,
        page: Sequence[BlobInfo],
        started_at: datetime,
        result: ReconcileResult,
        *,
        dry_run: bool,
    ) -> None:
        # A copied bucket holds one id below two logs, so ids are not keys of this.
        blobs = [(blob.key.rpartition("/")[2], blob) for blob in page if blob.key != OWNER_KEY]
        ids = [mpack_id for mpack_id, _blob in blobs]
        leases, _now = await self._ledger.leases(ids)
        archived = await self._archived([one for one in ids if one not in leases])
        for mpack_id, blob in blobs:
            lease, gone = leases.get(mpack_id), mpack_id in archived
            match judge(blob.key, log_id=self._log_id, lease=lease, archived=gone):
                case Verdict.ARCHIVED:
                    result.find(Finding.ARCHIVED_BLOB, blob.key)
                case Verdict.FOREIGN:
                    result.find(Finding.FOREIGN_KEY, blob.key)
                case Verdict.FORGOTTEN:
                    result.find(Finding.FORGOTTEN_BLOB, blob.key)
                case Verdict.ADOPT:
                    result.adopted += dry_run or await self._adopt(mpack_id, blob)
                case Verdict.RESIDUE:
                    lease = leases[mpack_id]
                    assert lease.reclaimed_at is not None
                    if lease.reclaimed_at >= started_at:
                        continue  # Reaped after it was listed: only the next listing can tell.
                    result.residue_deleted += dry_run or await self._delete_residue(lease, blob)

    async def _archived(self, ids: Sequence[str]) -> set[str]:
        """Those of these ids, all without a row, that had a lease before."""
        if not ids:
            return set()
        streams = {lease_stream(mpack_id): mpack_id for mpack_id in ids}
        return {streams[stream] for stream in await self._ledger.streams_with(list(streams))}

    async def _adopt(self, mpack_id: str, blob: BlobInfo) -> bool:
        # An id is older than its reservation: by the wait for a turn, by the planning, and by what
        # its process's clock was slow. The blob was put after it, by the store's clock.
        command = AdoptLease(
            repo_id="",
            storage_key=blob.key,
            made_at=max(mpack_id_time(mpack_id), blob.modified_at + _STORE_SECONDS),
            lease_life_max_seconds=self._policy.lease_life_max_seconds,
        )
        now = (await self._event_log.head())["now"]
        (event,) = decide(None, command, now=now)
        return await self._append(
            new_lease_event(
                mpack_id, event, caller=_RECONCILER, replica=self._replica, expected_version=0
            )
        )

    async def _delete_residue(self, lease: Lease, blob: BlobInfo) -> bool:
        assert blob.key == lease.storage_key
        await self._store.delete(blob.key)
        command = RecordResidue(size_bytes=blob.size_bytes)
        (event,) = decide(lease, command, now=lease.delete_at)
        return await self._append(
            new_lease_event(
                lease.mpack_id,
                event,
                caller=_RECONCILER,
                replica=self._replica,
                expected_version=lease.version,
            )
        )

    async def _append(self, fact: NewEvent) -> bool:
        (answer,) = await self._event_log.append_each([fact])
        if isinstance(answer, Conflict):
            return False  # Another replica's reconcile did it at the same moment.
        if isinstance(answer, BaseException):
            raise answer
        return True

    async def _find_missing(
        self, seen: SeenKeys, started_at: datetime, result: ReconcileResult
    ) -> None:
        """Active leases whose blob was not listed, and is not there on a second look either."""
        if not isinstance(self._store, HeadsBlobs):
            return
        after = ""
        while rows := await self._ledger.active(before=started_at, after=after, limit=_PAGE):
            after = rows[-1][0]
            for mpack_id, key in rows:
                if key in seen or await self._store.head(key):
                    continue
                # It may have been reaped while we looked; what is due may be gone, and its record
                # still to come.
                leases, now = await self._ledger.leases([mpack_id])
                again = leases.get(mpack_id)
                if again is not None and _is_promised(again, now):
                    result.find(Finding.BLOB_MISSING, key)


def _is_promised(lease: Lease, now: datetime) -> bool:
    """Whether this lease's blob must be there."""
    return lease.state is LeaseState.ACTIVE and now < lease.delete_at


async def _pages(blobs: AsyncIterator[BlobInfo]) -> AsyncIterator[list[BlobInfo]]:
    page: list[BlobInfo] = []
    async for blob in blobs:
        page.append(blob)
        if len(page) == _PAGE:
            yield page
            page = []
    if page:
        yield page
