"""The client's chunks: closed, with one tip, each commit and object once."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.client import Diverged, Refused, Unreachable
from gateway.client.push import (
    OBJECT_BYTES_PER_CALL,
    OBJECTS_PER_CALL_MAX,
    ObjectEntry,
    ancestors,
    commit_chunks,
    object_chunks,
    push,
)
from tests.client_fakes import ADDRESS, RecordedGateway, SentHistory, run
from tests.factories import History, histories, make_history


@given(histories(), st.data())
def test_chunks_are_closed_have_one_tip_and_leave_nothing_out(
    made: History, data: st.DataObject
) -> None:
    history = SentHistory(made)
    known_heads = data.draw(st.lists(st.sampled_from(sorted(made.commits)), max_size=2))
    known = ancestors(history.parents, known_heads)
    bytes_max = data.draw(st.sampled_from([1, 1500, 10**6]))
    have = set(known)
    chunks = list(commit_chunks(history, known, bytes_max=bytes_max))
    for chunk in chunks:
        ids = [commit["commit_id"] for commit in chunk.commits]
        for commit_id in ids:
            assert set(history.parents[commit_id]) <= have
            have.add(commit_id)
        inner = {parent for commit_id in ids for parent in history.parents[commit_id]}
        assert [commit_id for commit_id in ids if commit_id not in inner] == [chunk.tip]
        named = {commit["snapshot_id"] for commit in chunk.commits}
        assert sorted(named) == sorted(s["snapshot_id"] for s in chunk.snapshots)
        assert set(chunk.objects) == {
            oid for s in chunk.snapshots for oid in s["manifest"].values()
        }
    sent = [commit["commit_id"] for chunk in chunks for commit in chunk.commits]
    lacking = ancestors(history.parents, [history.head]) - known
    assert sorted(sent) == sorted(lacking or {history.head})
    assert chunks[-1].tip == history.head


def test_small_chunks_follow_the_first_parents() -> None:
    made = make_history(3, commits=30)
    history = SentHistory(made)
    tips = [chunk.tip for chunk in commit_chunks(history, set(), bytes_max=1)]
    for earlier, later in pairwise(tips):
        assert earlier in ancestors(history.parents, [later])
    assert len(tips) > 10


@pytest.mark.parametrize(
    "sizes,expected",
    [
        ([], []),
        ([0] * 401, [400, 1]),
        ([OBJECT_BYTES_PER_CALL + 1, 1, 1], [1, 2]),
        ([OBJECT_BYTES_PER_CALL // 2] * 3, [2, 1]),
    ],
    ids=["none", "by count", "one large alone", "by bytes"],
)
def test_objects_go_by_count_and_by_bytes(sizes: list[int], expected: list[int]) -> None:
    content = bytes(max(sizes, default=0))
    entries = (
        ObjectEntry(object_id=str(n), content=content[:size]) for n, size in enumerate(sizes)
    )
    assert [len(chunk) for chunk in object_chunks(entries)] == expected
    assert OBJECTS_PER_CALL_MAX == 400


def test_a_push_sends_only_what_is_missing_and_at_most_four_calls_at_once() -> None:
    made = make_history(5, commits=20, files=2500, size_bytes=8)
    history = SentHistory(made)
    gateway = RecordedGateway(missing=set(made.contents))
    pushed = run(push(ADDRESS, history, branch="main"), gateway)
    assert (pushed.head, pushed.commits) == (history.head, 20)
    assert pushed.objects == len(made.contents)
    assert pushed.object_bytes == sum(map(len, made.contents.values()))
    assert gateway.at_once_max == 4
    assert pushed.branch_heads == {"main": history.head}
    again = run(push(ADDRESS, history, branch="main"), gateway)
    assert again.up_to_date
    assert gateway.paths[-1] == "/refs"
    assert again.commits == again.objects == 0


def test_a_known_head_on_a_new_branch_is_pushed_alone_without_objects() -> None:
    history = SentHistory(make_history(6, commits=5))
    gateway = RecordedGateway(heads={"main": history.head})
    run(push(ADDRESS, history, branch="feature"), gateway)
    assert gateway.paths == ["/refs", "/filter-objects", "/push"]
    assert [c["commit_id"] for c in gateway.pushes[0]["bundle"]["commits"]] == [history.head]


def test_a_branch_that_moved_elsewhere_is_refused_before_anything_is_sent() -> None:
    history = SentHistory(make_history(7, commits=5))
    gateway = RecordedGateway(heads={"main": "f" * 64})
    with pytest.raises(Diverged):
        run(push(ADDRESS, history, branch="main"), gateway)
    assert gateway.paths == ["/refs"]
    run(push(ADDRESS, history, branch="main", force=True), gateway)
    assert gateway.pushes[0]["force"] is True


def test_a_repository_that_does_not_exist_yet_has_no_heads() -> None:
    history = SentHistory(make_history(8, commits=2))
    gateway = RecordedGateway(refusals={"/refs": (404, {"message": "No such repository."})})
    assert run(push(ADDRESS, history, branch="main"), gateway).commits == 2


def test_an_answer_of_no_carries_the_gateways_sentence_and_what_is_missing() -> None:
    history = SentHistory(make_history(9, commits=2))
    body = {"message": "Snapshots are missing.", "code": "incomplete", "missing": ["a" * 64]}
    gateway = RecordedGateway(refusals={"/push": (422, body)})
    with pytest.raises(Refused, match="Snapshots are missing") as caught:
        run(push(ADDRESS, history, branch="main"), gateway)
    assert caught.value.fields["missing_count"] == 1


def test_a_gateway_that_is_away_is_asked_four_times_and_no_more() -> None:
    history = SentHistory(make_history(10, commits=2))
    gateway = RecordedGateway(refusals={"/push": (503, {"message": "Later, please."})})
    with pytest.raises(Unreachable, match="Later"):
        run(push(ADDRESS, history, branch="main"), gateway)
    assert gateway.paths.count("/push") == 4
    assert len(gateway.pauses) == 3
    assert gateway.pauses == sorted(gateway.pauses)
