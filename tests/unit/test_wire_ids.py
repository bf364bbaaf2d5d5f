import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Incomplete
from gateway.wire.ids import (
    IdForm,
    bare,
    bare_all,
    commit_id_of,
    is_commit_id,
    is_snapshot_id,
    object_id_of,
    snapshot_id_of,
)

ONE, TWO, THREE = (digit * 64 for digit in "123")


def test_an_object_id_is_the_hash_of_the_bytes() -> None:
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert object_id_of(b"") == empty


def test_a_snapshot_id_joins_sorted_paths_and_ids_by_nul() -> None:
    """Written out from the protocol, so that the code is not compared with itself."""
    text = f"a\0{TWO}\0b\0{ONE}".encode()
    assert snapshot_id_of({"b": ONE, "a": TWO}) == hashlib.sha256(text).hexdigest()


def test_a_commit_id_joins_sorted_parents_snapshot_message_and_time_by_nul() -> None:
    time = "2026-01-31T12:00:00.123456+02:00"
    text = f"{ONE}\0{TWO}\0{THREE}\0a message\0{time}".encode()
    made = commit_id_of([TWO, ONE], THREE, message="a message", committed_at=time)
    assert made == hashlib.sha256(text).hexdigest()


def test_a_root_has_an_empty_text_for_its_parents() -> None:
    expected = hashlib.sha256(f"\0{ONE}\0m\0t".encode()).hexdigest()
    assert commit_id_of([], ONE, message="m", committed_at="t") == expected


@pytest.mark.parametrize("form", IdForm)
def test_a_snapshot_id_is_right_in_either_form_of_its_object_ids(form: IdForm) -> None:
    made = snapshot_id_of({"a": form.write(ONE)})
    assert is_snapshot_id(made, {"a": ONE})
    assert not is_snapshot_id(made, {"a": TWO})


@pytest.mark.parametrize("sent", IdForm)
@pytest.mark.parametrize("hashed", IdForm)
def test_a_commit_id_is_right_in_either_form_of_the_ids_inside(
    hashed: IdForm, sent: IdForm
) -> None:
    made = commit_id_of([hashed.write(ONE)], hashed.write(TWO), message="m", committed_at="t")
    assert is_commit_id(
        made,
        parent_ids=[sent.write(ONE)],
        snapshot_id=sent.write(TWO),
        message="m",
        committed_at="t",
    )


def test_a_commit_may_name_an_old_parent_beside_a_new_snapshot() -> None:
    new = IdForm.PREFIXED.write(TWO)
    made = commit_id_of([ONE], new, message="m", committed_at="t")
    assert is_commit_id(made, parent_ids=[ONE], snapshot_id=new, message="m", committed_at="t")


def test_a_commit_id_of_another_message_is_wrong() -> None:
    made = commit_id_of([ONE], TWO, message="m", committed_at="t")
    assert not is_commit_id(made, parent_ids=[ONE], snapshot_id=TWO, message="n", committed_at="t")


@pytest.mark.parametrize("form", IdForm)
def test_ids_are_read_in_both_forms(form: IdForm) -> None:
    assert bare(form.write(ONE)) == ONE
    assert IdForm.of(form.write(ONE)) is form
    assert IdForm.of_first([form.write(ONE), TWO]) is form


def test_a_list_is_made_bare_in_its_order() -> None:
    assert bare_all([TWO, IdForm.PREFIXED.write(ONE), TWO]) == [TWO, ONE, TWO]


def test_an_empty_list_is_answered_bare() -> None:
    assert IdForm.of_first([]) is IdForm.BARE


@pytest.mark.parametrize(
    "text",
    ["", "abc", ONE[:-1], ONE + "1", "A" * 64, ONE + "\n", "sha256:" * 2 + ONE, "sha1:" + ONE],
)
def test_anything_else_is_no_id(text: str) -> None:
    with pytest.raises(Incomplete, match="is not an id"):
        bare(text)


@given(st.dictionaries(st.text("a/\x00\x01é", max_size=4), st.text("ab\x00", max_size=3)))
def test_a_snapshot_id_is_the_formula_of_the_protocol(manifest: dict[str, str]) -> None:
    """Paths that hold NUL never come from the decoder; even they must sort as the client sorts."""
    joined = "\0".join(sorted(path + "\0" + text for path, text in manifest.items()))
    assert snapshot_id_of(manifest) == hashlib.sha256(joined.encode()).hexdigest()
