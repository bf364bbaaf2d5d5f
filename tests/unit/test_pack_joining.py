"""Which small segments are joined: neighbours of one repo, within bounds."""

from __future__ import annotations

from gateway.packs.joining import SmallSegment, batches


def small(number: int, *, repo: str = "r", size: int = 10, entries: int = 1) -> SmallSegment:
    return SmallSegment(f"{number:03}", f"segments/{number:03}", size, entries, repo)


def joined(found: list[SmallSegment], *, bytes_max: int = 1000, least: int = 2) -> list[list[str]]:
    made = batches(found, bytes_max=bytes_max, segments_min=least)
    return [[one.mpack_id for one in batch] for batch in made]


def test_neighbours_of_a_repo_are_one_batch() -> None:
    assert joined([small(1), small(2), small(3)]) == [["001", "002", "003"]]


def test_repos_are_not_mixed_and_what_is_too_few_waits() -> None:
    found = [small(1, repo="a"), small(2, repo="a"), small(3, repo="b"), small(4, repo="c")]
    assert joined(found) == [["001", "002"]]
    assert joined(found, least=3) == []


def test_a_batch_ends_where_it_would_be_too_large() -> None:
    found = [small(number, size=400) for number in range(5)]
    assert joined(found) == [["000", "001"], ["002", "003"]]
    tiny = joined([small(number) for number in range(2500)], bytes_max=1 << 30)
    assert [len(batch) for batch in tiny] == [1000, 1000, 500]
    many = [small(number, entries=2000) for number in range(5)]
    assert joined(many) == [["000", "001"], ["002", "003"]]


def test_nothing_is_nothing() -> None:
    assert joined([]) == []
