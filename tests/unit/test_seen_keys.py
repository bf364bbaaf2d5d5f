"""A set that forgets the keys and knows them all the same."""

from __future__ import annotations

from leases.seen import SeenKeys

KEYS = [f"transient/log/{number:032x}" for number in range(4_000)]


def test_what_was_seen_is_known_and_what_was_not_is_not() -> None:
    seen = SeenKeys()
    for key in KEYS[:2_000]:
        seen.add(key)
    assert all(key in seen for key in KEYS[:2_000])
    # So few are mistaken once in some thousand million million times.
    assert not any(key in seen for key in KEYS[2_000:])
    seen.close()


def test_each_set_is_mistaken_about_other_keys() -> None:
    """Else a blob that one comparison overlooks would be overlooked by all."""

    def mistaken() -> set[str]:
        seen = SeenKeys(bits=1 << 13)  # Two keys to eight bits: about one stranger in six.
        for key in KEYS[:2_000]:
            seen.add(key)
        return {key for key in KEYS[2_000:] if key in seen}

    one, other = mistaken(), mistaken()
    assert one
    assert one != other
