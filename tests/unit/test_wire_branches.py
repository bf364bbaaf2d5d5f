import pytest

from gateway.errors import Incomplete
from gateway.wire.branches import check_branch


@pytest.mark.parametrize("name", ["main", "feature/a-1", "v1.0", "ä/λ", "a@b", "x" * 255])
def test_names_that_git_takes_are_taken(name: str) -> None:
    check_branch(name, bytes_max=255)


@pytest.mark.parametrize(
    "name",
    [
        *("", "@", "a b", "a\0b", "a\nb", "a..b", "a//b", "/a", "a/", "a.", "-a", ".a", "a/.b"),
        *("a.lock", "a.lock/b", "a~1", "a^", "a:b", "a?", "a*", "a[", "a\\b", "a@{1}", "\ud800"),
        *("x" * 256, "ä" * 128),
    ],
)
def test_names_that_git_refuses_are_refused(name: str) -> None:
    with pytest.raises(Incomplete, match="The branch name"):
        check_branch(name, bytes_max=255)
