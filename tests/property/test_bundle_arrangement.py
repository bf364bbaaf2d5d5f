"""What a push works out, against the naive way of working it out."""

from collections.abc import Collection

from hypothesis import given
from hypothesis import strategies as st

from gateway.packs.arrange import GraphRow, Surroundings, arrange
from gateway.packs.bundle import Newcomers, newcomers, read_bundle
from gateway.packs.manifest import apply_delta, decode_delta, decode_manifest
from gateway.wire.body import decode
from gateway.wire.ids import IdForm
from gateway.wire.limits import WireLimits
from gateway.wire.messages import PushRequest
from tests.factories import BRANCH, History, histories, push_body

LIMITS = WireLimits()


def new_of(history: History, *, known: Collection[str] = ()) -> Newcomers:
    """All of the history pushed into a repo that holds these commits of it."""
    request = decode(push_body(history.bundle()), PushRequest, limits=LIMITS)
    sent = read_bundle(request.bundle, branch=BRANCH, limits=LIMITS)
    snapshots = {history.commits[commit_id].snapshot_id for commit_id in known}
    return newcomers(sent, known_commits=known, known_snapshots=snapshots, limits=LIMITS)


def around_of(history: History, new: Newcomers) -> Surroundings:
    commits = history.commits
    graph = {
        commit_id: GraphRow(
            parent_ids=commits[commit_id].parent_ids,
            generation=commits[commit_id].generation,
            snapshot_id=commits[commit_id].snapshot_id,
        )
        for commit_id in new.outside_parents
    }
    manifests = {commit.snapshot_id: dict(commit.manifest) for commit in commits.values()}
    stored = {key: item for key, item in manifests.items() if key not in new.snapshots}
    return Surroundings(graph=graph, manifests=stored)


@given(histories(), st.data())
def test_generations_and_introductions_are_those_of_the_whole_history(
    history: History, data: st.DataObject
) -> None:
    """Whatever part of it the repo holds already."""
    heads = data.draw(st.lists(st.sampled_from(sorted(history.commits))))
    known = history.ancestry(heads)
    new = new_of(history, known=known)
    arranged = arrange(new, around_of(history, new))
    assert arranged.graph.keys() == history.commits.keys() - known
    for commit_id, row in arranged.graph.items():
        made = history.commits[commit_id]
        assert (row.generation, row.parent_ids) == (made.generation, made.parent_ids)
        introduced = {
            object_id for object_id, place in arranged.introductions if place == commit_id
        }
        assert introduced == history.introduced(made)


@given(histories())
def test_commits_follow_their_parents(history: History) -> None:
    new = new_of(history)
    seen: set[str] = set()
    for commit_id, row in arrange(new, Surroundings()).graph.items():
        assert seen.issuperset(row.parent_ids)
        seen.add(commit_id)


@given(histories())
def test_every_stored_manifest_resolves_to_the_one_pushed(history: History) -> None:
    forms = arrange(new_of(history), Surroundings()).forms

    def resolve(snapshot_id: str) -> dict[str, str]:
        form = forms[snapshot_id]
        if form.manifest_blob is not None:
            return decode_manifest(form.manifest_blob)
        assert form.base_snapshot_id is not None
        assert form.delta_blob is not None
        return apply_delta(resolve(form.base_snapshot_id), decode_delta(form.delta_blob))

    for commit in history.commits.values():
        assert resolve(commit.snapshot_id) == commit.manifest


@given(histories())
def test_the_boundary_is_the_ancestry_split_by_what_is_known(history: History) -> None:
    head = history.head
    known = history.ancestry(head.parent_ids)
    inside, outside = new_of(history, known=known).boundary(head.commit_id)
    assert inside == {head.commit_id}
    assert outside == set(head.parent_ids)


@given(histories(form=IdForm.PREFIXED))
def test_a_newer_clients_ids_become_bare(history: History) -> None:
    new = new_of(history)
    assert new.commits.keys() == history.commits.keys()
    for commit in history.commits.values():
        assert new.snapshots[commit.snapshot_id].manifest == commit.manifest
