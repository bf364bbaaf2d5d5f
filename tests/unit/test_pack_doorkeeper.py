"""What was asked for before: within a window, and within a bound."""

from __future__ import annotations

from gateway.packs.doorkeeper import Doorkeeper


def test_only_the_second_asking_is_one_again() -> None:
    door = Doorkeeper(100)
    door.knock("a", 0)
    assert not door.asked_again("a", 0)
    door.knock("b", 1)
    assert not door.asked_again("a", 1)
    door.knock("a", 2)
    assert door.asked_again("a", 2)
    assert not door.asked_again("b", 2)


def test_half_the_window_is_remembered_and_never_more_than_all_of_it() -> None:
    door = Doorkeeper(100)
    for began, again, known in ((0, 49, True), (1000, 1099, True), (2000, 2100, False)):
        key = f"from {began}"
        door.knock(key, began)
        door.knock(key, again)
        assert door.asked_again(key, again) is known


def test_a_window_of_nothing_knows_nobody() -> None:
    door = Doorkeeper(0)
    for _ in range(3):
        door.knock("a", 5)
        assert not door.asked_again("a", 5)


def test_a_flood_of_keys_takes_bounded_room_and_leaves_the_latest_known() -> None:
    door = Doorkeeper(1e9, keys_max=10)
    for number in range(1000):
        door.knock(str(number), number)
        assert len(door) <= 20
    door.knock("999", 1000)
    assert door.asked_again("999", 1000)
    door.knock("5", 1000)
    assert not door.asked_again("5", 1000)
