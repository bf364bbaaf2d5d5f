"""A manifest that is hashed on from where it changed has the id that all of it has."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.client import BadPack
from gateway.client.running import RunningManifest
from gateway.wire.ids import IdForm, snapshot_id_of

# So many paths that the runs split, and so large changes that some of them become empty.
IDS = st.sampled_from([digit * 64 for digit in "0123456789abcdef"])
PATHS = st.integers(0, 299).map("dir/{:03}".format)
DELTAS = st.lists(
    st.one_of(
        st.dictionaries(PATHS, st.none() | IDS, max_size=4),
        st.tuples(st.integers(0, 299), st.integers(1, 299), st.none() | IDS).map(
            lambda told: {
                f"dir/{number:03}": told[2]
                for number in range(told[0], min(300, told[0] + told[1]))
            }
        ),
    ),
    max_size=8,
)


def changed(manifest: dict[str, str], delta: dict[str, str | None]) -> dict[str, str]:
    merged: dict[str, str | None] = {**manifest, **delta}
    return {path: object_id for path, object_id in merged.items() if object_id is not None}


def size_of(manifest: dict[str, str]) -> int:
    return sum(len(path.encode()) + 1 + len(oid) + 1 for path, oid in manifest.items())


@given(st.dictionaries(PATHS, IDS, max_size=20), DELTAS, st.data())
def test_every_change_and_its_undoing_lead_to_the_right_id(
    first: dict[str, str], deltas: list[dict[str, str | None]], data: st.DataObject
) -> None:
    running, manifests, undone = RunningManifest(first), [first], []
    for delta in deltas:
        undone.append(running.change(delta))
        manifests.append(changed(manifests[-1], delta))
        if data.draw(st.booleans()):
            assert running.check(snapshot_id_of(manifests[-1])) == size_of(manifests[-1])
    while undone:
        assert running.check(snapshot_id_of(manifests.pop())) >= 0
        running.put_back(undone.pop())
    assert running.check(snapshot_id_of(first)) == size_of(first)


@pytest.mark.parametrize("gone", [(0, 48), (48, 96), (96, 100), (48, 100), (0, 100)])
def test_a_run_may_become_empty_and_full_again(gone: tuple[int, int]) -> None:
    """The states of what stood behind it, its own among them, go with it."""
    manifest = {f"{number:03}": "a" * 64 for number in range(100)}
    running = RunningManifest(manifest)
    running.check(snapshot_id_of(manifest))
    delta = dict.fromkeys(list(manifest)[slice(*gone)])
    undo = running.change(delta)
    running.check(snapshot_id_of(changed(manifest, delta)))
    running.put_back(undo)
    running.check(snapshot_id_of(manifest))


@given(st.dictionaries(PATHS, IDS, min_size=1, max_size=200), PATHS, st.data())
def test_ids_in_either_form_and_no_other_manifest(
    manifest: dict[str, str], path: str, data: st.DataObject
) -> None:
    running = RunningManifest(manifest)
    other = changed(manifest, {path: "5a" * 32})
    for _ in range(3):
        write = data.draw(st.sampled_from(IdForm)).write
        right = snapshot_id_of({one: write(object_id) for one, object_id in manifest.items()})
        wrong = snapshot_id_of({one: write(object_id) for one, object_id in other.items()})
        running.check(right)
        with pytest.raises(BadPack):
            running.check(wrong)
        running.check(right)


@pytest.mark.parametrize(
    "delta", [{"a\0b": None}, {"a\0b": "0" * 64}, {"a": "x"}, {"a": "0" * 31 + "\0b\0" + "0" * 30}]
)
def test_what_could_be_read_as_another_manifest_is_refused(delta: dict[str, str | None]) -> None:
    with pytest.raises(BadPack):
        RunningManifest({}).change(delta)
    with pytest.raises(BadPack):
        RunningManifest({path: str(object_id) for path, object_id in delta.items()})
