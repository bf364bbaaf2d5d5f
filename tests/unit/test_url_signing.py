from __future__ import annotations

from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.storage.signing import UrlExpired, UrlSigner, UrlTampered
from leases.errors import InvalidRequest

SECRET = bytes(range(32))
SIGNED_AT = datetime(2026, 11, 23, 12, 0, 0, 900_000, tzinfo=UTC)


class Moment:
    """A clock a test sets."""

    def __init__(self, now: datetime = SIGNED_AT) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


def signer(clock: Moment | None = None, secret: bytes = SECRET) -> UrlSigner:
    return UrlSigner(secret, public_url="https://gateway.example/mpack/", clock=clock or Moment())


def parts_of(url: str) -> dict[str, str]:
    query = parse_qs(urlsplit(url).query, strict_parsing=True)
    return {name: values[0] for name, values in query.items()}


def test_the_url_lies_under_the_public_url() -> None:
    url = signer().sign("GET", "transient/a/b", expires_in=60)
    assert url.startswith("https://gateway.example/mpack/blobs/transient/a/b?expires=")


def test_lives_to_the_last_moment_before_its_second_and_not_into_it() -> None:
    """Signed at .9 for one second, a URL lives for a tenth: whole seconds count."""
    clock = Moment()
    signing = signer(clock)
    parts = parts_of(signing.sign("GET", "k", expires_in=1))
    clock.now = SIGNED_AT.replace(microsecond=999_999)
    signing.verify("GET", "k", **parts)
    clock.now = SIGNED_AT.replace(second=1, microsecond=0)
    with pytest.raises(UrlExpired):
        signing.verify("GET", "k", **parts)


def test_another_starter_with_the_same_key_accepts_it() -> None:
    parts = parts_of(signer().sign("GET", "k", expires_in=60))
    signer().verify("GET", "k", **parts)


@pytest.mark.parametrize(
    "method, key, expires",
    [("PUT", "k", None), ("GET", "k2", None), ("GET", "k", "+1"), ("get", "k", None)],
)
def test_a_changed_part_is_tampering(method: str, key: str, expires: str | None) -> None:
    parts = parts_of(signer().sign("GET", "k", expires_in=60))
    if expires is not None:
        parts["expires"] = str(int(parts["expires"]) + 1)
    with pytest.raises(UrlTampered):
        signer().verify(method, key, **parts)


def test_another_key_fits_nothing() -> None:
    parts = parts_of(signer(secret=b"\1" * 32).sign("GET", "k", expires_in=60))
    with pytest.raises(UrlTampered):
        signer().verify("GET", "k", **parts)


def test_an_expired_url_with_a_wrong_signature_is_only_told_tampered() -> None:
    """The signature is checked first: the expiry of a made-up URL is nobody's business."""
    with pytest.raises(UrlTampered):
        signer().verify("GET", "k", expires="1", signature="0" * 64)


@given(expires=st.text(max_size=20), signature=st.text(max_size=70), key=st.text(max_size=20))
def test_no_made_up_text_passes_or_breaks_it(expires: str, signature: str, key: str) -> None:
    with pytest.raises(UrlTampered):
        signer().verify("GET", key, expires=expires, signature=signature)


@given(
    offset=st.timedeltas(timedelta(0), timedelta(days=1)), expires_in=st.integers(1, 7 * 24 * 3600)
)
def test_never_lives_longer_than_asked_and_at_most_a_second_less(
    offset: timedelta, expires_in: int
) -> None:
    clock = Moment(SIGNED_AT + offset)
    parts = parts_of(signer(clock).sign("GET", "k", expires_in=expires_in))
    life = int(parts["expires"]) - clock.now.timestamp()
    assert expires_in - 1 < life + 1e-6
    assert life <= expires_in


@pytest.mark.parametrize("expires_in", [0, -5, 7 * 24 * 3600 + 1])
def test_refuses_lives_outside_one_second_to_seven_days(expires_in: int) -> None:
    with pytest.raises(InvalidRequest):
        signer().sign("GET", "k", expires_in=expires_in)


def test_shows_no_secret() -> None:
    signing = signer()
    parts = parts_of(signing.sign("GET", "k", expires_in=60))
    with pytest.raises(UrlTampered) as tampered:
        signing.verify("PUT", "k", **parts)
    shown = repr(signing) + str(tampered.value) + repr(tampered.value) + repr(tampered.value.fields)
    for secret in (repr(SECRET), SECRET.hex(), parts["signature"]):
        assert secret not in shown
