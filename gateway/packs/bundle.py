"""What a push brings, checked: everything about a bundle that needs no database.

Three steps, with look-ups between them (push.py): `read_bundle` finds out which ids are spoken of;
`newcomers` recomputes the ids of what the repo does not hold yet and lists the objects it names;
`arrange` (arrange.py) orders the new commits and works out what is stored of them. Whatever is
known already is skipped by its id, and its manifest is never decoded.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from gateway.errors import MISSING_SHOWN_MAX, Incomplete
from gateway.packs.commits import SentCommit, read_commit
from gateway.packs.manifest import Manifest, PathCheck
from gateway.wire.body import decode_manifest
from gateway.wire.ids import IdForm, bare, is_snapshot_id
from gateway.wire.limits import WireLimits
from gateway.wire.messages import Bundle, PushSnapshot
from gateway.wire.times import instant_of


@dataclass(frozen=True, slots=True, kw_only=True)
class SentBundle:
    """A bundle by bare ids, as it was sent; where an id stands twice the first one counts."""

    commits: Mapping[str, SentCommit]
    snapshots: Mapping[str, PushSnapshot]
    named_head: str | None
    form: IdForm

    @property
    def commit_ids(self) -> set[str]:
        """Every commit that is spoken of: sent, as a parent, or as the branch's head."""
        ids = set(self.commits)
        ids.update(*(commit.parent_ids for commit in self.commits.values()))
        if self.named_head:
            ids.add(self.named_head)
        return ids

    @property
    def snapshot_ids(self) -> set[str]:
        """Every snapshot that is spoken of."""
        return {commit.snapshot_id for commit in self.commits.values()} | set(self.snapshots)


def read_bundle(bundle: Bundle, *, branch: str, limits: WireLimits) -> SentBundle:
    """Decode the records of a bundle.

    Errors: InvalidRequest and its kinds.
    """
    commits: dict[str, SentCommit] = {}
    for record in bundle.commits:
        commit = read_commit(record, limits=limits)
        commits.setdefault(commit.commit_id, commit)
    snapshots: dict[str, PushSnapshot] = {}
    for snapshot in bundle.snapshots:
        snapshots.setdefault(bare(snapshot.snapshot_id), snapshot)
    head = bundle.branch_heads.get(branch)
    written = [commit.fields.commit_id for commit in commits.values()] + ([head] if head else [])
    return SentBundle(
        commits=commits,
        snapshots=snapshots,
        named_head=bare(head) if head else None,
        form=IdForm.of_first(written),
    )


def tip_of(sent: SentBundle, *, branch: str, known: Collection[str]) -> str:
    """The commit that the branch shall point to: the one named, or the one that is no parent.

    Errors: Incomplete (422) when there is none, or more than one.
    """
    head = sent.named_head
    if head is not None:
        if head in sent.commits or head in known:
            return head
        raise _incomplete("The head in branch_heads is neither pushed nor known", [head], sent.form)
    if not sent.commits:
        raise Incomplete(f"The bundle holds no commit for {branch} to point to.")
    parents = {parent for commit in sent.commits.values() for parent in commit.parent_ids}
    tips = sent.commits.keys() - parents
    if len(tips) != 1:
        raise Incomplete(
            f"{len(tips)} commits of the bundle are nobody's parent, so the head of {branch} is not"
            " clear: name it in branch_heads."
        )
    return next(iter(tips))


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSnapshot:
    """A snapshot the repo does not hold yet, verified."""

    manifest: Manifest
    created_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Newcomers:
    """What the repo does not hold yet, with its ids recomputed, and what it refers to."""

    commits: Mapping[str, SentCommit]
    committed_at: Mapping[str, datetime]
    snapshots: Mapping[str, NewSnapshot]

    @property
    def outside_parents(self) -> set[str]:
        """Parents that the repo holds already."""
        parents = {parent for commit in self.commits.values() for parent in commit.parent_ids}
        return parents - self.commits.keys()

    @property
    def object_ids(self) -> set[str]:
        """Every object that a new manifest names."""
        ids: set[str] = set()
        ids.update(*(snapshot.manifest.values() for snapshot in self.snapshots.values()))
        return ids

    def boundary(self, tip: str) -> tuple[set[str], set[str]]:
        """The new commits at and below `tip`, and the known ones that they stand on."""
        inside: set[str] = set()
        outside: set[str] = set()
        waiting = [tip]
        while waiting:
            commit_id = waiting.pop()
            commit = self.commits.get(commit_id)
            if commit is None:
                outside.add(commit_id)
            elif commit_id not in inside:
                inside.add(commit_id)
                waiting += commit.parent_ids
        return inside, outside


def newcomers(
    sent: SentBundle,
    *,
    known_commits: Collection[str],
    known_snapshots: Collection[str],
    limits: WireLimits,
) -> Newcomers:
    """Verify what is new; everything it refers to but the objects is there.

    Errors: Incomplete (422), with the list of what is missing; TooLarge (413).
    """
    commits = {key: item for key, item in sent.commits.items() if key not in known_commits}
    new_snapshots = {
        key: item for key, item in sent.snapshots.items() if key not in known_snapshots
    }
    parents = {parent for commit in commits.values() for parent in commit.parent_ids}
    missing = parents - commits.keys() - set(known_commits)
    if missing:
        raise _incomplete(
            "Parents of pushed commits are neither pushed nor known", missing, sent.form
        )
    named = {commit.snapshot_id for commit in commits.values()}
    missing = named - new_snapshots.keys() - set(known_snapshots)
    if missing:
        raise _incomplete("Snapshots of pushed commits are not known", missing, sent.form)
    return Newcomers(
        commits=commits,
        committed_at={key: commit.verified() for key, commit in commits.items()},
        snapshots=_verified_snapshots(new_snapshots, limits),
    )


def _verified_snapshots(
    snapshots: Mapping[str, PushSnapshot], limits: WireLimits
) -> dict[str, NewSnapshot]:
    paths = PathCheck(path_bytes_max=limits.path_bytes_max)
    # Manifests repeat each other: one text for each id, checked once.
    bare_ids: dict[str, str] = {}
    verified: dict[str, NewSnapshot] = {}
    for snapshot_id, snapshot in snapshots.items():
        manifest = decode_manifest(snapshot.manifest, limits=limits)
        for path, text in manifest.items():
            object_id = bare_ids.get(text)
            if object_id is None:
                object_id = bare_ids[text] = bare(text)
            manifest[path] = object_id
        paths.check(manifest)
        if not is_snapshot_id(snapshot_id, manifest):
            raise Incomplete(
                f"Snapshot {snapshot_id} does not recompute to its id.", snapshot_id=snapshot_id
            )
        created_at = snapshot.created_at
        verified[snapshot_id] = NewSnapshot(
            manifest=manifest,
            created_at=instant_of(created_at, what=f"created_at of snapshot {snapshot_id}")
            if created_at
            else None,
        )
    return verified


def check_objects(named: Collection[str], *, held: Collection[str], form: IdForm) -> None:
    """Make sure that every object that a new manifest names is pushed, uploaded or held.

    Errors: Incomplete (422) with the list of what is missing.
    """
    missing = set(named).difference(held)
    if missing:
        raise _incomplete("Objects of pushed snapshots are not known", missing, form)


def _incomplete(what: str, missing: Iterable[str], form: IdForm) -> Incomplete:
    ids = sorted(missing)
    return Incomplete(
        f"{what}: {len(ids)} missing, {form.write(ids[0])} among them.",
        missing=[form.write(text) for text in ids[:MISSING_SHOWN_MAX]],
    )
