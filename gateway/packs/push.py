"""A push: check everything, then write it all and move the branch in one transaction.

    read       decode the bundle; ask what of it the repo holds; recompute the ids of the rest
    check      parents, snapshots and objects are pushed, uploaded or held; the branch may move
    store      the objects that came along, as one segment (segments.py); then the uploads, whose
               bytes are hashed on their way
    commit     the rows, the branch by compare-and-swap, and the `repo.pushed` event last

Nothing is stored before everything is checked, and the transaction begins when all of its
arguments stand ready. When somebody else moved the branch in between, the compare-and-swap finds
out, and the move is judged again against the new head. A COMMIT whose answer was lost is judged
again too: then the branch stands where it should, and the push is done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

from gateway.errors import NonFastForward, RepoMissing, TooLarge
from gateway.packs.arrange import Arranged, GraphRow, Surroundings, arrange
from gateway.packs.bundle import (
    Newcomers,
    SentBundle,
    check_objects,
    newcomers,
    read_bundle,
    tip_of,
)
from gateway.packs.known import (
    branch_count,
    branch_head,
    graph_of,
    is_ancestor,
    known_commits,
    known_objects,
    known_snapshots,
)
from gateway.packs.manifest_rows import chain_depths, load_manifests
from gateway.packs.push_rows import (
    PushRows,
    array_text,
    graph_columns,
    introduction_columns,
    mark_pushed,
    move_branch,
    write_rows,
)
from gateway.packs.repos import Repo, branch_heads, repo_stream
from gateway.packs.segments import Chunk, SegmentWriter, verify_objects
from gateway.packs.transaction import Reader, reading, transaction, tried_again
from gateway.packs.uploads import Candidates, Upload, Uploads
from gateway.wire.branches import check_branch
from gateway.wire.ids import IdForm
from gateway.wire.limits import WireLimits
from gateway.wire.messages import PushRequest
from leases.database import Database
from leases.errors import DatabaseUnavailable, Unavailable
from leases.lessor import Caller
from leases.log import EventLog, NewEvent
from leases.steps import Step, Steps, no_steps

# A push that loses the branch is nearly always refused at the next look; only forced pushes go on.
MOVES_TRIED_MAX = 5
# Every `refs` and every answer to a push lists them all.
BRANCHES_MAX = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PushResult:
    """The answer to a push; ids in the form of its request."""

    ok: bool
    message: str
    branch_heads: dict[str, str]
    remote_head: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """A checked push: what is written, and where the branch shall point."""

    branch: str
    tip: str
    force: bool
    rows: PushRows
    uploads: Candidates
    form: IdForm
    inside: Collection[str]
    outside: Collection[str]


class PushService:
    """Takes pushes into repos."""

    def __init__(
        self,
        database: Database,
        log: EventLog,
        segments: SegmentWriter,
        *,
        uploads: Uploads,
        limits: WireLimits,
        steps: Steps = no_steps,
    ) -> None:
        self._database = database
        self._log = log
        self._segments = segments
        self._uploads = uploads
        self._limits = limits
        self._step = steps

    async def push(self, repo: Repo, request: PushRequest, caller: Caller) -> PushResult:
        """Take what the bundle brings and move the branch.

        Effects: at most one segment (more for uploads) and one transaction with one `repo.pushed`;
                 none of either when the repo holds everything and the branch stands there.
        Errors:  Incomplete (422) with the list of what is missing; NonFastForward (409) when the
                 branch's head is not below the pushed tip and force is off; TooLarge (413);
                 RepoMissing when the repo was deleted meanwhile; Unavailable.
        """
        check_branch(request.branch, bytes_max=self._limits.branch_bytes_max)
        limits = self._limits
        sent = await asyncio.to_thread(
            read_bundle, request.bundle, branch=request.branch, limits=limits
        )
        chunk = await verify_objects(request.bundle.objects)

        async def prepare() -> _Prepared:
            async with reading(self._database) as reader:
                prepared = await self._prepare(reader, repo, sent, request=request, chunk=chunk)
                head = await branch_head(reader, repo.repo_id, request.branch)
                await self._check_move(reader, repo.repo_id, prepared, head)
            return prepared

        prepared = await tried_again(prepare)
        uploads = await self._arrived(prepared)
        await self._segments.store_verified(repo.repo_id, chunk, caller)
        await self._segments.store_uploads(repo.repo_id, uploads, caller)
        moved = await self._move(repo, prepared, caller=caller)
        heads = await tried_again(partial(branch_heads, self._database, repo.repo_id))
        heads[request.branch] = prepared.tip
        count = prepared.rows.commit_count
        return PushResult(
            ok=True,
            message=f"{request.branch} moved, {count} commits new" if moved else "up to date",
            branch_heads={name: sent.form.write(commit_id) for name, commit_id in heads.items()},
            remote_head=sent.form.write(prepared.tip),
        )

    async def _prepare(
        self, reader: Reader, repo: Repo, sent: SentBundle, *, request: PushRequest, chunk: Chunk
    ) -> _Prepared:
        """Check the whole bundle against what the repo holds."""
        commits = await known_commits(reader, repo.repo_id, sent.commit_ids)
        snapshots = await known_snapshots(reader, repo.repo_id, sent.snapshot_ids)
        tip = tip_of(sent, branch=request.branch, known=commits)
        new = await asyncio.to_thread(
            newcomers, sent, known_commits=commits, known_snapshots=snapshots, limits=self._limits
        )
        wanted = new.object_ids - chunk.contents.keys()
        held = await known_objects(reader, repo.repo_id, wanted)
        uploads = await self._uploads.candidates(reader, repo.repo_id, wanted - held)
        there = held | chunk.contents.keys() | uploads.keys()
        check_objects(new.object_ids, held=there, form=sent.form)
        around, derived = await _surroundings(reader, new)
        rows = await asyncio.to_thread(_rows, new, around, derived=derived)
        inside, outside = new.boundary(tip)
        return _Prepared(
            branch=request.branch,
            tip=tip,
            force=request.force,
            rows=rows,
            uploads=uploads,
            form=sent.form,
            inside=inside,
            outside=outside,
        )

    async def _arrived(self, prepared: _Prepared) -> list[Upload]:
        """Errors: Incomplete (422) with those of which a URL was handed out and nothing came."""
        arrived = await self._uploads.arrived(prepared.uploads)
        there = {upload.object_id for upload in arrived}
        check_objects(prepared.uploads.keys(), held=there, form=prepared.form)
        return arrived

    async def _check_move(
        self, reader: Reader, repo_id: str, prepared: _Prepared, head: str | None
    ) -> None:
        """Errors: NonFastForward; TooLarge for a branch too many, by as many as come at once."""
        if head is None and await branch_count(reader, repo_id) >= BRANCHES_MAX:
            raise TooLarge(f"A repository may have {BRANCHES_MAX:,} branches.")
        if prepared.force or head is None or head in prepared.inside:
            return
        if not await is_ancestor(reader, head, prepared.outside):
            raise NonFastForward(branch=prepared.branch, head=head)

    async def _move(self, repo: Repo, prepared: _Prepared, *, caller: Caller) -> bool:
        """Write the rows and move the branch; answers whether it had to move."""
        failure: Unavailable = Unavailable("Too many pushes to this branch at once; try again.")
        for _ in range(MOVES_TRIED_MAX):
            try:
                async with reading(self._database) as reader:
                    head = await branch_head(reader, repo.repo_id, prepared.branch)
                    if head == prepared.tip and prepared.rows.is_empty:
                        return False
                    await self._check_move(reader, repo.repo_id, prepared, head)
                if await self._write(repo, prepared, head=head, caller=caller):
                    return head != prepared.tip
            except DatabaseUnavailable as error:
                failure = error
        raise failure

    async def _write(
        self, repo: Repo, prepared: _Prepared, *, head: str | None, caller: Caller
    ) -> bool:
        """The transaction; False when the branch does not stand at `head` any more."""
        pushed = _pushed_event(repo, prepared, head=head, caller=caller)
        repo_id, branch = repo.repo_id, prepared.branch
        async with transaction(self._database) as connection:
            if head != prepared.tip and not await move_branch(
                connection, repo_id, branch, expected=head, head=prepared.tip
            ):
                return False
            await write_rows(connection, repo_id, prepared.rows)
            if not await mark_pushed(connection, repo_id, branch):
                raise RepoMissing(repo_id=repo_id)
            if head != prepared.tip:
                await self._log.append_in(connection, [pushed])
            self._step(Step.PUSH_WRITTEN)
        self._step(Step.PUSH_COMMITTED)
        return True


def _pushed_event(repo: Repo, prepared: _Prepared, *, head: str | None, caller: Caller) -> NewEvent:
    return NewEvent(
        stream=repo_stream(repo.repo_id),
        type="repo.pushed",
        data={
            "branch": prepared.branch,
            "head": prepared.tip,
            "previous_head": head,
            "forced": prepared.force,
            "commits": prepared.rows.commit_count,
        },
        expected_version=None,
        actor=caller.actor,
        request_id=caller.request_id,
    )


async def _surroundings(reader: Reader, new: Newcomers) -> tuple[Surroundings, dict[str, GraphRow]]:
    """What is stored around the new commits, and graph rows that other code left out."""
    graph, derived = await graph_of(reader, new.outside_parents)
    named = {commit.snapshot_id for commit in new.commits.values()}
    named |= {
        row.snapshot_id
        for commit_id, row in graph.items()
        if row.snapshot_id and commit_id in new.outside_parents
    }
    stored = sorted(named - new.snapshots.keys())
    if not stored:
        return Surroundings(graph=graph), derived
    manifests = await load_manifests(reader, stored)
    depths = await chain_depths(reader, stored)
    return Surroundings(graph=graph, manifests=manifests, depths=depths), derived


def _rows(new: Newcomers, around: Surroundings, *, derived: dict[str, GraphRow]) -> PushRows:
    arranged = arrange(new, around)
    return PushRows(
        commits=_commit_columns(new),
        graph=graph_columns({**derived, **arranged.graph}),
        snapshots=_snapshot_columns(new, arranged),
        introductions=introduction_columns(arranged.introductions),
    )


def _commit_columns(new: Newcomers) -> dict[str, list[object]]:
    commits = [commit for _, commit in sorted(new.commits.items())]
    return {
        "ids": [commit.commit_id for commit in commits],
        "branches": [commit.branch for commit in commits],
        "parents": [array_text(commit.parent_ids) for commit in commits],
        "messages": [commit.message for commit in commits],
        "authors": [commit.author for commit in commits],
        "times": [new.committed_at[commit.commit_id] for commit in commits],
        "snapshots": [commit.snapshot_id for commit in commits],
        "records": [bytes(commit.record) for commit in commits],
    }


def _snapshot_columns(new: Newcomers, arranged: Arranged) -> dict[str, list[object]]:
    ids = sorted(new.snapshots)
    forms = [arranged.forms[snapshot_id] for snapshot_id in ids]
    return {
        "ids": list(ids),
        "manifests": [form.manifest_blob for form in forms],
        "bases": [form.base_snapshot_id for form in forms],
        "deltas": [form.delta_blob for form in forms],
        "counts": [len(new.snapshots[snapshot_id].manifest) for snapshot_id in ids],
        "times": [new.snapshots[snapshot_id].created_at for snapshot_id in ids],
    }
