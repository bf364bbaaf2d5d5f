"""Contents, manifests, commits and whole histories with valid ids, made from a seed.

Nothing here touches a service or a clock: the same seed gives the same bytes, everywhere.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import msgpack
from hypothesis import strategies as st

from gateway.wire.ids import IdForm, commit_id_of, object_id_of, snapshot_id_of

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
BRANCH = "main"


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeCommit:
    """One commit; ids are bare here, its record writes them in the history's form."""

    commit_id: str
    snapshot_id: str
    parent_ids: tuple[str, ...]
    manifest: Mapping[str, str]
    generation: int
    committed_at: str
    record: Mapping[str, Any]

    @property
    def packed(self) -> bytes:
        """The record as it goes over the wire."""
        return bytes(msgpack.packb(self.record))


@dataclass(slots=True)
class History:
    """Commits with all that belongs to them, parents before children."""

    form: IdForm = IdForm.BARE
    contents: dict[str, bytes] = field(default_factory=dict)
    commits: dict[str, MadeCommit] = field(default_factory=dict)

    def content(self, content: bytes) -> str:
        """Remember a content; answers its bare id."""
        object_id = object_id_of(content)
        self.contents[object_id] = content
        return object_id

    def commit(
        self,
        manifest: Mapping[str, str],
        *,
        parents: Sequence[MadeCommit] = (),
        message: str | None = None,
        committed_at: str | None = None,
        **changes: Any,
    ) -> MadeCommit:
        """Add a commit of this manifest (bare object ids); `changes` go into its record."""
        number = len(self.commits)
        message = f"commit {number}" if message is None else message
        committed_at = committed_at or (EPOCH + timedelta(seconds=number)).isoformat()
        written = {path: self.form.write(object_id) for path, object_id in manifest.items()}
        snapshot_id = snapshot_id_of(written)
        parent_ids = tuple(parent.commit_id for parent in parents)
        commit_id = commit_id_of(
            [self.form.write(parent_id) for parent_id in parent_ids],
            self.form.write(snapshot_id),
            message=message,
            committed_at=committed_at,
        )
        record = commit_record(
            commit_id=self.form.write(commit_id),
            snapshot_id=self.form.write(snapshot_id),
            parent_ids=[self.form.write(parent_id) for parent_id in parent_ids],
            message=message,
            committed_at=committed_at,
        )
        made = MadeCommit(
            commit_id=commit_id,
            snapshot_id=snapshot_id,
            parent_ids=parent_ids,
            manifest=dict(manifest),
            generation=1 + max((parent.generation for parent in parents), default=0),
            committed_at=committed_at,
            record=record | changes,
        )
        self.commits[commit_id] = made
        return made

    @property
    def head(self) -> MadeCommit:
        """The newest commit."""
        return list(self.commits.values())[-1]

    def ancestry(self, heads: Iterable[str]) -> set[str]:
        """The ids of these commits and of all below them (the naive way, for comparison)."""
        seen: set[str] = set()
        waiting = list(heads)
        while waiting:
            commit_id = waiting.pop()
            if commit_id not in seen:
                seen.add(commit_id)
                waiting += self.commits[commit_id].parent_ids
        return seen

    def introduced(self, commit: MadeCommit) -> set[str]:
        """The objects that are new in this commit against all of its parents."""
        known: set[str] = set()
        for parent_id in commit.parent_ids:
            known.update(self.commits[parent_id].manifest.values())
        return set(commit.manifest.values()) - known

    def objects(self, object_ids: Iterable[str] | None = None) -> list[dict[str, Any]]:
        """Objects as push/objects takes them; all of them unless some are named."""
        chosen = sorted(self.contents if object_ids is None else object_ids)
        return [
            {"object_id": self.form.write(object_id), "content": self.contents[object_id]}
            for object_id in chosen
        ]

    def bundle(
        self, commits: Iterable[MadeCommit] | None = None, *, with_objects: bool = False
    ) -> dict[str, Any]:
        """A push's bundle of these commits (all by default), with the objects when asked for."""
        chosen = list(self.commits.values() if commits is None else commits)
        manifests = {commit.snapshot_id: commit.manifest for commit in chosen}
        held = {object_id for manifest in manifests.values() for object_id in manifest.values()}
        return {
            "commits": [dict(commit.record) for commit in chosen],
            "snapshots": [self.snapshot(*item) for item in manifests.items()],
            "objects": self.objects(held & self.contents.keys()) if with_objects else [],
        }

    def snapshot(self, snapshot_id: str, manifest: Mapping[str, str]) -> dict[str, Any]:
        """A snapshot as a client sends it."""
        return {
            "snapshot_id": self.form.write(snapshot_id),
            "manifest": {path: self.form.write(text) for path, text in manifest.items()},
            "created_at": EPOCH.isoformat(),
        }


def commit_record(
    *,
    commit_id: str,
    snapshot_id: str,
    parent_ids: Sequence[str],
    message: str,
    committed_at: str,
) -> dict[str, Any]:
    """A commit with every key that the Muse client sends, in its order."""
    parents = [*parent_ids, None, None]
    return {
        "commit_id": commit_id,
        "repo_id": "the-client-s-own",
        "branch": BRANCH,
        "snapshot_id": snapshot_id,
        "message": message,
        "committed_at": committed_at,
        "parent_commit_id": parents[0],
        "parent2_commit_id": parents[1],
        "author": "Ada",
        "metadata": {},
        "structured_delta": None,
        "sem_ver_bump": "none",
        "breaking_changes": [],
        "agent_id": "",
        "model_id": "",
        "toolchain_id": "",
        "prompt_hash": "",
        "signature": "",
        "signer_key_id": "",
        "format_version": 7,
        "reviewed_by": [],
        "test_runs": 0,
    }


def push_body(bundle: Mapping[str, Any], *, branch: str = BRANCH, force: bool = False) -> bytes:
    """The body of POST {url}/push."""
    return bytes(msgpack.packb({"bundle": bundle, "branch": branch, "force": force}))


def make_history(
    seed: int,
    *,
    commits: int = 10,
    files: int = 5,
    size_bytes: int = 64,
    merges: bool = True,
    form: IdForm = IdForm.BARE,
) -> History:
    """A history with one head: edits, additions, removals and, at times, a merged side branch."""
    chance = random.Random(seed)
    history = History(form=form)
    manifest = {
        f"src/file-{number:04}.txt": history.content(chance.randbytes(size_bytes))
        for number in range(files)
    }
    head = history.commit(manifest)
    while len(history.commits) < commits:
        if merges and commits - len(history.commits) >= 3 and chance.random() < 0.3:
            side = history.commit(_edited(history, head, chance, size_bytes), parents=[head])
            main = history.commit(_edited(history, head, chance, size_bytes), parents=[head])
            merged = {**side.manifest, **main.manifest}
            head = history.commit(merged, parents=[main, side])
        else:
            head = history.commit(_edited(history, head, chance, size_bytes), parents=[head])
    return history


def _edited(
    history: History, commit: MadeCommit, chance: random.Random, size_bytes: int
) -> dict[str, str]:
    manifest = dict(commit.manifest)
    path = chance.choice(sorted(manifest))
    if len(manifest) > 2 and chance.random() < 0.1:
        del manifest[path]
    elif chance.random() < 0.2:
        path = f"src/added-{chance.randrange(10**6):06}.txt"
    manifest[path] = history.content(chance.randbytes(size_bytes))
    return manifest


_PATHS = ("a.txt", "b/c.txt", "b/d.txt", "e/f/g.txt", "ä ö/λ.txt")


@st.composite
def histories(draw: st.DrawFn, *, commits_max: int = 12, form: IdForm = IdForm.BARE) -> History:
    """Any small graph: several roots and heads, merges, reverts, contents that come back."""
    history = History(form=form)
    object_ids = [history.content(b"content %d" % number) for number in range(6)]
    manifests = st.dictionaries(st.sampled_from(_PATHS), st.sampled_from(object_ids), max_size=5)
    for number in range(draw(st.integers(1, commits_max))):
        earlier = list(history.commits.values())
        parents: list[MadeCommit] = []
        if earlier:
            parents = draw(
                st.lists(
                    st.sampled_from(earlier),
                    min_size=0 if number % 5 == 4 else 1,
                    max_size=2,
                    unique_by=lambda commit: commit.commit_id,
                )
            )
        history.commit(draw(manifests), parents=parents)
    return history
