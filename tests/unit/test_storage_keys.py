from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.storage.keys import KEY_LENGTH_MAX, InvalidKey, check_key, check_prefix, is_key

BAD_KEYS = [
    "",
    "/",
    "/etc/passwd",
    "..",
    "../x",
    "a/../b",
    "a/./b",
    "a//b",
    "a/",
    ".signing-key",
    ".tmp/x",
    "a/.owner",
    "transient/.owner/x",
    "transient/.other",
    "segments/.owner",
    "a\\b",
    "a\nb",
    "a\n",
    "a\0b",
    "a b",
    "a%2e",
    "ä",
    "a" * 256,
    "a/" * (KEY_LENGTH_MAX // 2) + "a",
]


@pytest.mark.parametrize("key", BAD_KEYS, ids=repr)
def test_refuses_what_could_leave_the_folder_or_meet_our_own_files(key: str) -> None:
    with pytest.raises(InvalidKey):
        check_key(key)


@pytest.mark.parametrize(
    "key", ["a", "transient/.owner", "transient/0a/0b", "segments/x.y-z_1", "a..b", "-a", "a" * 255]
)
def test_takes_plain_paths(key: str) -> None:
    assert check_key(key) == key


@given(st.text(alphabet="a./_-\\\n\0 é", max_size=20) | st.text(max_size=20))
def test_a_key_stays_below_its_root(key: str) -> None:
    if is_key(key):
        parts = PurePosixPath(key).parts
        assert "/".join(parts) == key
        assert not PurePosixPath(key).is_absolute()
        assert ".." not in parts
        assert key == "transient/.owner" or not any(part.startswith(".") for part in parts)


@given(st.from_regex(r"[a-z]{1,8}(/[a-z0-9.]{0,3}[a-z]){0,3}", fullmatch=True))
def test_every_beginning_of_a_key_is_a_prefix(key: str) -> None:
    if is_key(key):
        for length in range(len(key) + 1):
            check_prefix(key[:length])


@pytest.mark.parametrize("prefix", ["../", "a/../", "/", "a//", ".tmp/", "a\n", "x" * 600])
def test_refuses_prefixes_outside(prefix: str) -> None:
    with pytest.raises(InvalidKey):
        check_prefix(prefix)
