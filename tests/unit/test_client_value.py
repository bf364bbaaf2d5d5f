"""The client's values are what dataclasses would be."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.client.value import Value


class Place(Value):
    host: str
    port: int = 80


def test_fields_are_given_by_name_or_in_order_and_have_defaults() -> None:
    place = Place(host="a")
    assert (place.host, place.port) == ("a", 80)
    assert Place("a", 80) == place
    assert repr(place) == "Place(host='a', port=80)"


@pytest.mark.parametrize(
    "values, fields",
    [((), {}), (("a", 1, 2), {}), (("a",), {"path": "/"}), ((), {"port": 1})],
    ids=["nothing", "too many", "unknown", "one is missing"],
)
def test_other_fields_than_declared_are_refused(values: Any, fields: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="Place takes host, port"):
        Place(*values, **fields)


def test_a_value_does_not_change() -> None:
    place: Any = Place("a")
    with pytest.raises(AttributeError, match="frozen"):
        place.port = 1
    with pytest.raises(AttributeError, match="frozen"):
        del place.host
    assert place == Place("a")


def test_equal_are_those_of_one_kind_with_equal_fields() -> None:
    class Other(Value):
        host: str
        port: int = 80

    assert {Place("a"), Place("a", 80), Place("a", 81), Place("b")} == {
        Place("a"),
        Place("a", 81),
        Place("b"),
    }
    assert Other("a") != Place("a")
