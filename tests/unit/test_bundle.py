"""Bundles that cannot be taken, told apart before the database is asked for anything but ids."""

from collections.abc import Collection
from typing import Any

import pytest

from gateway.errors import Incomplete
from gateway.packs.bundle import SentBundle, check_objects, newcomers, read_bundle, tip_of
from gateway.wire.body import decode
from gateway.wire.ids import IdForm
from gateway.wire.limits import WireLimits
from gateway.wire.messages import PushRequest
from tests.factories import BRANCH, History, make_history, push_body

LIMITS = WireLimits()


def sent(bundle: dict[str, Any]) -> SentBundle:
    request = decode(push_body(bundle), PushRequest, limits=LIMITS)
    return read_bundle(request.bundle, branch=BRANCH, limits=LIMITS)


def tip(bundle: dict[str, Any], *, known: Collection[str] = ()) -> str:
    return tip_of(sent(bundle), branch=BRANCH, known=known)


def two_heads() -> History:
    history = History()
    root = history.commit({"a": history.content(b"1")})
    history.commit({"a": history.content(b"2")}, parents=[root])
    history.commit({"a": history.content(b"3")}, parents=[root])
    return history


def test_the_tip_is_the_commit_that_is_nobodys_parent() -> None:
    history = make_history(3, commits=12)
    assert tip(history.bundle()) == history.head.commit_id


def test_a_named_head_goes_before_the_rule() -> None:
    history = two_heads()
    chosen = list(history.commits)[1]
    assert tip({**history.bundle(), "branch_heads": {BRANCH: chosen}}) == chosen


def test_a_named_head_may_be_one_that_the_repo_holds() -> None:
    known = "7" * 64
    assert tip({"branch_heads": {BRANCH: known}}, known={known}) == known


@pytest.mark.parametrize(
    "bundle, words",
    [
        ({}, "no commit"),
        (two_heads().bundle(), "name it in branch_heads"),
        ({"branch_heads": {BRANCH: "7" * 64}}, "neither pushed nor known"),
        ({"branch_heads": {"other": "7" * 64}}, "no commit"),
    ],
)
def test_a_bundle_without_a_clear_tip_is_refused(bundle: dict[str, Any], words: str) -> None:
    with pytest.raises(Incomplete, match=words):
        tip(bundle)


def refused(bundle: dict[str, Any]) -> Incomplete:
    with pytest.raises(Incomplete) as caught:
        newcomers(sent(bundle), known_commits=(), known_snapshots=(), limits=LIMITS)
    return caught.value


@pytest.mark.parametrize("form", IdForm)
def test_missing_parents_are_listed_in_the_requests_form(form: IdForm) -> None:
    history = make_history(1, commits=3, merges=False, form=form)
    root, second, _ = history.commits.values()
    error = refused(history.bundle(list(history.commits.values())[1:]))
    assert error.fields["missing"] == [form.write(root.commit_id)]
    assert second.commit_id not in error.message


def test_missing_snapshots_are_listed() -> None:
    history = make_history(1, commits=3, merges=False)
    error = refused({**history.bundle(), "snapshots": []})
    assert set(error.fields["missing"]) == {c.snapshot_id for c in history.commits.values()}


def test_missing_objects_are_listed_up_to_a_bound() -> None:
    history = make_history(1, commits=1, files=1500)
    new = newcomers(sent(history.bundle()), known_commits=(), known_snapshots=(), limits=LIMITS)
    with pytest.raises(Incomplete, match="1500 missing") as caught:
        check_objects(new.object_ids, held=(), form=IdForm.BARE)
    assert len(caught.value.fields["missing"]) == 1000


@pytest.mark.parametrize(
    "changes",
    [{"message": "another"}, {"committed_at": "2027-01-01T00:00:00"}, {"snapshot_id": "7" * 64}],
)
def test_a_commit_that_does_not_recompute_is_refused(changes: dict[str, Any]) -> None:
    history = make_history(1, commits=1)
    bundle = history.bundle()
    bundle["commits"][0] |= changes
    bundle["snapshots"][0] |= {key: changes[key] for key in ("snapshot_id",) if key in changes}
    assert "does not recompute" in refused(bundle).message


def test_a_time_that_is_none_is_refused_even_when_it_is_hashed_right() -> None:
    history = History()
    history.commit({}, committed_at="the day before yesterday")
    assert "is not a time" in refused(history.bundle()).message


@pytest.mark.parametrize(
    "manifest, words",
    [
        ({"a": "7" * 64}, "does not recompute"),
        ({"../a": "7" * 64}, "segment"),
        ({"a": "7" * 64, "a/b": "7" * 64}, "a file and a folder"),
        ({"a": "x" * 64}, "is not an id"),
    ],
)
def test_a_bad_manifest_is_refused(manifest: dict[str, str], words: str) -> None:
    history = make_history(1, commits=1)
    bundle = history.bundle()
    bundle["snapshots"][0]["manifest"] = manifest
    assert words in refused(bundle).message


def test_a_commit_that_names_one_parent_twice_has_one_edge() -> None:
    history = History()
    root = history.commit({})
    child = history.commit({}, parents=[root, root])
    new = newcomers(sent(history.bundle()), known_commits=(), known_snapshots=(), limits=LIMITS)
    assert new.commits[child.commit_id].parent_ids == (root.commit_id,)


def test_of_two_records_with_one_id_the_first_counts() -> None:
    history = make_history(1, commits=1)
    bundle = history.bundle()
    bundle["commits"].append({**bundle["commits"][0], "author": "Eve"})
    (commit,) = sent(bundle).commits.values()
    assert commit.author == "Ada"
