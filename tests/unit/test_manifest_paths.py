import pytest

from gateway.errors import Incomplete, TooLarge
from gateway.packs.manifest import PathCheck


def check(*paths: str) -> None:
    PathCheck(path_bytes_max=100).check(paths)


@pytest.mark.parametrize(
    "path", ["a", "a/b/c.txt", ".hidden", "...", "a b", "ä/λ", "a\\b", "src/a:b", "x" * 100]
)
def test_ordinary_paths_pass(path: str) -> None:
    check(path)


@pytest.mark.parametrize(
    "path",
    [
        *("", "/a", "//a", "a/", "a//b", ".", "..", "a/..", "../a", "a/../../b", "a/./b"),
        *(".git/hooks/post-checkout", ".muse/config", ".GIT/config"),
        *("a\0b", "\\a", "\\\\server\\share", "..\\a", "a\\..\\b", "C:\\a", "c:a", "a\\", "\ud800"),
    ],
)
def test_paths_that_leave_the_working_tree_are_refused(path: str) -> None:
    with pytest.raises(Incomplete, match="The path"):
        check("fine.txt", path)


def test_a_path_that_is_too_long_is_413() -> None:
    with pytest.raises(TooLarge):
        check("ä" * 51)


@pytest.mark.parametrize("paths", [("a", "a/b"), ("a/b/c/d", "a/b"), ("a", "a!", "a/b")])
def test_a_file_cannot_be_a_folder_too(paths: tuple[str, ...]) -> None:
    with pytest.raises(Incomplete, match="a file and a folder"):
        check(*paths)


def test_one_check_judges_each_manifest_for_itself() -> None:
    """A file may become a folder in a later commit."""
    paths = PathCheck(path_bytes_max=100)
    paths.check({"a": "1"})
    paths.check({"a/b": "1"})
    with pytest.raises(Incomplete):
        paths.check({"a": "1", "a/b": "1"})
