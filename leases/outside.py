"""What only the store can tell an audit: the head that was published there, and the blobs."""

from __future__ import annotations

from leases.audit import Published, Verdict
from leases.owner import Mark
from leases.reconcile import Finding, Reconciler

_WORDS = {
    Finding.FOREIGN_KEY: "the store holds a key that is none of ours",
    Finding.BLOB_MISSING: "the blob of an open lease is gone",
}
_NOTES = {
    Finding.FORGOTTEN_BLOB: "the blob of a lease that was forgotten is still there",
    Finding.ARCHIVED_BLOB: "the blob of a lease that ended and was archived is there",
    Finding.NOT_COMPARED: "there are too many blobs to look for those that are gone",
}


def published_in_store(mark: Mark | None, *, log_id: str, verdict: Verdict) -> list[Published]:
    """The head in the store's mark; a mark of another log is a problem of its own."""
    if mark is None:
        return []
    if mark.log_id != log_id:
        verdict.complain(f"the store belongs to the log {mark.log_id}, this is {log_id}")
        return []
    if not mark.position:
        return []
    return [Published(mark.position, mark.hash, " in the store")]


async def check_store(reconciler: Reconciler, verdict: Verdict) -> None:
    """Compare the leases with the blobs, both ways; nothing is changed.

    Errors: the store's and the database's.
    """
    found = await reconciler.run_once(dry_run=True)
    if found.adopted:
        verdict.complain(f"blobs in the store without a lease: {found.adopted:,}")
    if found.residue_deleted:
        verdict.complain(f"blobs in the store whose leases have ended: {found.residue_deleted:,}")
    for finding, key in found.findings:
        if finding in _WORDS:
            verdict.complain(f"{_WORDS[finding]}: {key}")
        else:
            verdict.notes.append(f"{_NOTES[finding]}: {key}")
