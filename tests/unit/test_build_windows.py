"""Which ranges of the segments are read for a window of the pack."""

from __future__ import annotations

from gateway.packs.pieces import Piece, cut_pieces, windows
from gateway.packs.places import Place, Places


def _pieces(lengths: list[int], *, piece_bytes_max: int) -> list[Piece]:
    places = Places()
    source = places.source("segments/a", foreign=False)
    offset = 0
    for number, length in enumerate(lengths):
        places.add(Place(f"{number:064x}", source, offset, length))
        offset += length
    return list(cut_pieces(places, range(len(places)), longer=0, piece_bytes_max=piece_bytes_max))


def test_windows_hold_every_piece_once_and_in_order() -> None:
    pieces = _pieces([300, 5, 1000, 20, 20], piece_bytes_max=256)
    found = list(windows(pieces, bytes_max=512))
    assert [piece for window in found for piece in window] == pieces
    sizes = [sum(piece.stop - piece.start for piece in window) for window in found]
    assert max(sizes) <= 512
    assert len(found) == 4


def test_a_piece_larger_than_a_window_is_one() -> None:
    """The bound of memory is then the piece's own: `build_read_bytes_max`."""
    pieces = _pieces([300, 300], piece_bytes_max=1024)
    assert [len(window) for window in windows(pieces, bytes_max=100)] == [1, 1]
