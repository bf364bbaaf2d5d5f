"""One clone by our client, as a command: python -m benchmarks.cloning URL; prints bytes.

Everything a clone has to do: heads, pack, download, every id recomputed.
"""

from __future__ import annotations

import sys

from gateway.client import Client, unpack


def clone(client: Client) -> int:
    """Fetch all heads and verify everything; the pack's bytes."""
    heads = client.refs().branch_heads
    answer = client.fetch_mpack(heads.values(), encoding="zstd", snapshots="delta")
    with client.download(answer) as got, unpack(got.path) as pack:
        assert set(heads.values()) <= pack.commits.keys()
        return answer.size_bytes


if __name__ == "__main__":
    with Client(sys.argv[1]) as one:
        print(clone(one))
