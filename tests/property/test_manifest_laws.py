import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.packs.manifest import (
    CHAIN_DEPTH_MAX,
    apply_delta,
    choose_form,
    decode_delta,
    decode_manifest,
    delta_between,
    encode_delta,
    encode_manifest,
)
from gateway.wire.ids import IdForm
from leases.errors import Corrupt

IDS = st.sampled_from([digit * 64 for digit in "0123456789abcdef"])
PATHS = st.sampled_from([f"{folder}{name}" for folder in ("", "a/", "ä/λ/") for name in "pqrst"])
MANIFESTS = st.dictionaries(PATHS, IDS)


@given(MANIFESTS)
def test_a_manifest_survives_its_stored_form(manifest: dict[str, str]) -> None:
    assert decode_manifest(encode_manifest(manifest)) == manifest


@given(MANIFESTS, st.randoms())
def test_equal_manifests_are_equal_bytes(manifest: dict[str, str], chance: object) -> None:
    items = list(manifest.items())
    chance.shuffle(items)  # type: ignore[attr-defined]  # Hypothesis' Random is typed as object
    assert encode_manifest(dict(items)) == encode_manifest(manifest)


@given(MANIFESTS, MANIFESTS)
def test_a_delta_turns_the_base_into_the_manifest(
    base: dict[str, str], manifest: dict[str, str]
) -> None:
    before = dict(base)
    delta = delta_between(base, manifest)
    assert apply_delta(base, decode_delta(encode_delta(delta))) == manifest
    assert base == before


@given(MANIFESTS)
def test_a_delta_to_itself_is_empty(manifest: dict[str, str]) -> None:
    assert delta_between(manifest, manifest) == {}


@given(MANIFESTS, MANIFESTS)
def test_a_delta_names_only_what_differs(base: dict[str, str], manifest: dict[str, str]) -> None:
    for path, object_id in delta_between(base, manifest).items():
        assert base.get(path) != manifest.get(path) == object_id


@given(MANIFESTS, MANIFESTS, st.integers(0, CHAIN_DEPTH_MAX + 1))
def test_the_chosen_form_holds_the_manifest_and_bounds_the_chain(
    base: dict[str, str], manifest: dict[str, str], depth: int
) -> None:
    form = choose_form(manifest, base_snapshot_id="b" * 64, base=base, base_depth=depth)
    assert form.depth <= CHAIN_DEPTH_MAX
    if form.manifest_blob is not None:
        assert decode_manifest(form.manifest_blob) == manifest
        assert (form.base_snapshot_id, form.delta_blob, form.depth) == (None, None, 0)
    else:
        assert form.delta_blob is not None
        assert apply_delta(base, decode_delta(form.delta_blob)) == manifest
        assert form.depth == depth + 1


@given(MANIFESTS, MANIFESTS)
def test_foreign_blobs_may_write_prefixed_ids(
    base: dict[str, str], manifest: dict[str, str]
) -> None:
    written = {path: IdForm.PREFIXED.write(text) for path, text in manifest.items()}
    assert decode_manifest(msgpack.packb(written)) == manifest
    delta = delta_between(base, manifest)
    foreign = {path: text and IdForm.PREFIXED.write(text) for path, text in delta.items()}
    assert decode_delta(msgpack.packb(foreign)) == delta


@pytest.mark.parametrize("blob", [b"", b"\x90", b"\x81\xa1a\x05", b"\x81\xa1\xff\xa1a"])
def test_a_damaged_blob_is_corruption(blob: bytes) -> None:
    """It was checked on its way in: a human must look at how it got there."""
    with pytest.raises(Corrupt):
        decode_manifest(blob)
    with pytest.raises(Corrupt):
        decode_delta(blob)
