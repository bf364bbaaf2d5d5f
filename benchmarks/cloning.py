"""One clone by our client, as a command: python -m benchmarks.cloning URL PATH; prints bytes.

Everything a clone has to do: heads, pack, download, every id recomputed, and nothing absent that is
named by what is there; the pack stays at PATH.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.client import Client


def clone(client: Client, path: str | os.PathLike[str]) -> int:
    """Fetch all heads and verify everything; the pack's bytes."""
    from gateway.client import unpack

    heads = client.refs().branch_heads
    answer = client.fetch_mpack(heads.values(), encoding="zstd", snapshots="delta")
    with unpack(client.download(answer, path)) as pack:
        assert set(heads.values()) <= pack.commits.keys()
        assert not pack.absent()
        return answer.size_bytes


_running: list[Client] = []


def start(url: str) -> None:
    """Be a process with a client that runs already."""
    from gateway.client import Client

    _running.append(Client(url))


def clone_again(path: str | os.PathLike[str]) -> int:
    """A clone by the client that runs already."""
    return clone(_running[0], path)


def _main() -> None:
    # As Git does, and every program that is over in a moment: no memory is looked through or given
    # back piece by piece.
    gc.disable()
    from gateway.client import Client

    with Client(sys.argv[1]) as client:
        print(clone(client, sys.argv[2]), flush=True)
    os._exit(0)


if __name__ == "__main__":
    _main()
