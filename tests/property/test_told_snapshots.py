"""Snapshots told as changes are the snapshots themselves, and nothing else passes for them."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.client import BadPack, TooBig
from gateway.client.manifests import Snapshots
from gateway.packs.manifest import delta_between
from gateway.wire.ids import IdForm, snapshot_id_of

IDS = st.sampled_from([digit * 64 for digit in "0123456789abcdef"])
# Paths that begin with each other, and that sort otherwise as texts of another encoding.
PATHS = st.sampled_from(["a", "a.b", "a/b", "ab", "a\x01", "z", "ä", "\uffff", "\U0001f600"])
MANIFESTS = st.dictionaries(PATHS, IDS)
Step = tuple[int, dict[str, str], IdForm]
STEPS = st.lists(
    st.tuples(st.integers(0, 20), MANIFESTS, st.sampled_from(IdForm)), min_size=1, max_size=20
)
BOUNDS = {"manifest_bytes_max": 10_000, "bytes_max": 1_000_000}


def written(manifest: dict[str, str], form: IdForm) -> str:
    return snapshot_id_of({path: form.write(text) for path, text in manifest.items()})


def told(
    steps: list[Step], spoil: int | None = None
) -> tuple[Snapshots, dict[str, dict[str, str]]]:
    """Snapshots as changes on any earlier one (or whole), each author with his own form of ids."""
    snapshots, manifests = Snapshots(), dict[str, dict[str, str]]()
    for number, (base, manifest, form) in enumerate(steps):
        snapshot_id = written(manifest, form)
        if snapshot_id in manifests:
            continue
        head = {"snapshot_id": snapshot_id, "created_at": "now"}
        if base >= len(manifests):
            snapshots.add_whole(snapshot_id, head | {"manifest": manifest})
        else:
            base_id = list(manifests)[base]
            delta = delta_between(manifests[base_id], manifest)
            if number == spoil:
                delta["a"] = "5a" * 32
            record = head | {"base_snapshot_id": base_id, "delta": delta}
            snapshots.add_delta(snapshot_id, base_id, record)
        manifests[snapshot_id] = manifest
    return snapshots, manifests


@given(STEPS)
@example([(9, {"a": "0" * 64, "a.b": "1" * 64}, IdForm.BARE), (0, {"a.b": "1" * 64}, IdForm.BARE)])
def test_changes_lead_to_every_manifest(steps: list[Step]) -> None:
    """Whatever the tree of bases, and whoever wrote ids in which form."""
    snapshots, manifests = told(steps)
    snapshots.verify(**BOUNDS)
    assert list(snapshots) == list(manifests)
    for snapshot_id in [*manifests, *reversed(manifests)]:
        record = snapshots[snapshot_id]
        assert record == {
            "snapshot_id": snapshot_id,
            "created_at": "now",
            "manifest": manifests[snapshot_id],
        }
    assert len(snapshots) == len(manifests)
    assert "f" * 64 not in snapshots


@given(STEPS, st.data())
def test_one_wrong_change_is_found(steps: list[Step], data: st.DataObject) -> None:
    _, manifests = told(steps)
    snapshots, _ = told(steps, spoil=data.draw(st.integers(0, len(steps) - 1)))
    right = all(snapshots[one]["manifest"] == manifests[one] for one in manifests)
    if right:
        snapshots.verify(**BOUNDS)
    else:
        with pytest.raises(BadPack):
            snapshots.verify(**BOUNDS)


def test_a_long_chain_costs_no_stack() -> None:
    steps = [(9999, {"a": f"{0:064}"}, IdForm.BARE)]
    steps += [(number, {"a": f"{number + 1:064}"}, IdForm.BARE) for number in range(5000)]
    snapshots, manifests = told(steps)
    snapshots.verify(manifest_bytes_max=100, bytes_max=1_000_000)
    last = list(manifests)[-1]
    assert snapshots[last]["manifest"] == manifests[last]


@pytest.mark.parametrize("bounds", [{"manifest_bytes_max": 100}, {"bytes_max": 1000}])
def test_changes_may_not_unfold_without_end(bounds: dict[str, int]) -> None:
    """A delta of a few bytes asks for the hash of a whole manifest."""
    manifest = {f"file-{number}": "0" * 64 for number in range(10)}
    steps = [(9, manifest, IdForm.BARE), (0, manifest | {"x": "1" * 64}, IdForm.BARE)]
    snapshots, _ = told(steps)
    with pytest.raises(TooBig):
        snapshots.verify(**(BOUNDS | bounds))
