"""Downloads against every way a store can let one down; no socket is needed to play it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gateway.client import BadPack, DownloadCut, Refused, TooBig, UrlExpired
from gateway.client.conversations import MpackAnswer, Wish, fetch_mpack
from gateway.client.download import ATTEMPTS_MAX, download
from gateway.client.exchange import Call
from tests.client_fakes import ADDRESS, reply, run

PACK = bytes(range(256)) * 40
SECRET = "X-Amz-Signature=feedbeef"
URL = f"http://store.test/transient/1?{SECRET}"
FRESH_URL = f"http://store.test/transient/2?{SECRET}"


def answer(url: str | None = URL, pack: bytes = PACK, **changes: Any) -> dict[str, Any]:
    told = {
        "mpack_id": "m",
        "mpack_url": url,
        "sha256": hashlib.sha256(pack).hexdigest(),
        "size_bytes": len(pack),
        "expires_at": "2026-01-01T00:00:00.000Z",
        "expires_in": 10.0,
    }
    return told | changes


def offered(**changes: Any) -> MpackAnswer:
    script = Script([])
    script.fetches = iter([answer(**changes)])
    return run(fetch_mpack(ADDRESS, Wish(want=("w",))), script)


Turn = Callable[[Call], None]


@dataclass
class Script:
    """The store's turns, one a request, and the gateway's answers to fetch/mpack."""

    turns: list[Turn]
    fetches: Iterator[dict[str, Any]] = field(default_factory=lambda: iter([answer(FRESH_URL)]))
    pauses: list[float] = field(default_factory=list)
    requests: list[Call] = field(default_factory=list)
    fetched: int = 0
    at_once_max: int = 0

    def answer(self, call: Call) -> None:
        if call.url.endswith("/fetch/mpack"):
            assert call.private
            self.fetched += 1
            reply(call, 200, next(self.fetches))
            return
        assert not call.private, "a presigned URL must never see the token"
        self.requests.append(call)
        self.turns[min(len(self.requests), len(self.turns)) - 1](call)


def whole(data: bytes = PACK, cut_at: int | None = None, etag: str = '"e"') -> Turn:
    """A store that ignores Range."""

    def turn(call: Call) -> None:
        call.sink.begin(200, {"etag": etag})
        call.sink.feed(data[:cut_at])
        if cut_at is not None:
            call.sink.lost("connection broken")

    return turn


def rest(data: bytes = PACK, cut_at: int | None = None) -> Turn:
    """A store that honours Range."""

    def turn(call: Call) -> None:
        start = int(call.headers["Range"].removeprefix("bytes=").rstrip("-"))
        call.sink.begin(
            206, {"etag": '"e"', "content-range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        )
        call.sink.feed(data[start:cut_at])
        if cut_at is not None:
            call.sink.lost("connection broken")

    return turn


def from_anywhere(call: Call) -> None:
    """A store that says it goes on at a place which is none."""
    call.sink.begin(206, {"content-range": f"bytes {'9' * 5000}-1/2"})
    call.sink.feed(PACK)


def status(code: int) -> Turn:
    return lambda call: call.sink.begin(code, {})


def lost(call: Call) -> None:
    call.sink.lost("no connection")


@pytest.mark.parametrize(
    "turns,resumed",
    [
        ([whole()], 0),
        ([whole(cut_at=1000), rest(cut_at=5000), rest()], 2),
        ([whole(cut_at=1000), whole()], 0),
        ([lost, whole(cut_at=0), status(503), whole(cut_at=10), rest()], 1),
        ([whole(cut_at=1000), status(416), whole()], 0),
        ([whole(cut_at=1000), from_anywhere, whole()], 0),
    ],
    ids=["at once", "resumed twice", "no Range", "store away", "range refused", "no such range"],
)
def test_a_pack_arrives_whole(tmp_path: Path, turns: list[Turn], resumed: int) -> None:
    script = Script(turns)
    got = run(download(ADDRESS, offered(), tmp_path / "pack"), script)
    assert got.path.read_bytes() == PACK
    assert (got.resumed, got.attempts, got.fetched_anew) == (resumed, len(turns), False)
    assert list(tmp_path.iterdir()) == [tmp_path / "pack"]


def test_a_resumed_transfer_names_the_blob_it_continues(tmp_path: Path) -> None:
    script = Script([whole(cut_at=1000), rest()])
    run(download(ADDRESS, offered(), tmp_path / "pack"), script)
    assert script.requests[1].headers["If-Range"] == '"e"'
    script = Script([whole(cut_at=1000, etag='W/"e"'), rest()])
    run(download(ADDRESS, offered(), tmp_path / "pack2"), script)
    assert "If-Range" not in script.requests[1].headers


@pytest.mark.parametrize("code", [403, 404, 410])
def test_an_expired_url_is_replaced_once_and_the_bytes_are_kept(tmp_path: Path, code: int) -> None:
    script = Script([whole(cut_at=1000), status(code), rest()])
    got = run(download(ADDRESS, offered(), tmp_path / "pack"), script)
    assert got.path.read_bytes() == PACK
    assert (got.fetched_anew, script.fetched, script.requests[-1].url) == (True, 1, FRESH_URL)
    script = Script([status(code)])
    with pytest.raises(UrlExpired):
        run(download(ADDRESS, offered(), tmp_path / "never"), script)
    assert script.fetched == 1


def test_a_fresh_url_for_another_pack_starts_over(tmp_path: Path) -> None:
    other = PACK[::-1]
    script = Script([whole(cut_at=1000), status(403), whole(other)])
    script.fetches = iter([answer(FRESH_URL, other)])
    got = run(download(ADDRESS, offered(), tmp_path / "pack"), script)
    assert "Range" not in script.requests[-1].headers
    assert got.path.read_bytes() == other


@pytest.mark.parametrize(
    "turns,error",
    [
        ([whole(cut_at=1000), lost], DownloadCut),
        ([status(500)], DownloadCut),
        ([whole(PACK[:-1] + b"!")], BadPack),
        ([whole(PACK + b"!")], BadPack),
        ([status(400)], Refused),
        ([status(302)], Refused),
    ],
    ids=["cut for ever", "broken for ever", "wrong bytes", "too many bytes", "refused", "redirect"],
)
def test_what_cannot_be_had_is_an_error_that_leaves_nothing_behind(
    tmp_path: Path, turns: list[Turn], error: type[Exception]
) -> None:
    script = Script(turns)
    with pytest.raises(error) as caught:
        run(download(ADDRESS, offered(), tmp_path / "pack"), script)
    assert list(tmp_path.iterdir()) == []
    assert len(script.requests) <= ATTEMPTS_MAX
    assert "feedbeef" not in str(caught.value) + repr(caught.value)


def test_a_pack_above_the_limit_is_not_even_begun(tmp_path: Path) -> None:
    script = Script([whole()])
    with pytest.raises(TooBig):
        run(download(ADDRESS, offered(), tmp_path / "pack", pack_bytes_max=10), script)
    assert script.requests == []


def test_a_pack_in_the_answer_itself_needs_no_url(tmp_path: Path) -> None:
    script = Script([])
    inline = offered(url=None, mpack=PACK)
    got = run(download(ADDRESS, inline, tmp_path / "pack"), script)
    assert got.path.read_bytes() == PACK
    assert "feedbeef" not in repr(offered())


def test_a_temporary_file_goes_with_its_context() -> None:
    with run(download(ADDRESS, offered()), Script([whole()])) as got:
        assert got.path.read_bytes() == PACK
        with open(got, "rb") as file:  # noqa: PTH123  it can be given to whatever takes a path
            assert file.read() == PACK
    assert not got.path.exists()
