"""What stays small however much there is: the most that Python held at once, not the process."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.factories import make_history
from tests.integration.gateways import serving, settings_for
from tests.leasing import CALLER

MIB = 1 << 20


@contextmanager
def traced() -> Iterator[list[int]]:
    """At its end the list holds the most bytes that the block held at once."""
    told: list[int] = []
    gc.collect()
    tracemalloc.start()
    try:
        yield told
        told.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()


async def test_releases_are_listed_without_holding_them_as_objects(
    database_url: str, tmp_path: Path
) -> None:
    """Sixty-four mebibytes of them are gigabytes of small maps."""
    async with serving(settings_for(database_url, tmp_path / "data")) as gateway:
        token = await gateway.token("push")
        await gateway.push("o/r", make_history(9, commits=1), token=token)
        repo = await gateway.service.repos.find(owner="o", slug="r")
        assert repo is not None
        limits = gateway.service.settings.wire
        # As JSON four bytes each, as objects seventy-two.
        maps: list[object] = [{}] * 260_000
        for number in range(3):
            record = {"tag": f"v{number}", "maps": maps}
            await gateway.service.names.put_release(repo.repo_id, record, CALLER, limits=limits)
        with traced() as most:
            answer = await gateway.http.get(f"{gateway.url}/o/r/releases")
            size_bytes = len(answer.content)
        assert (answer.status_code, size_bytes > 3 * len(maps)) == (200, True)
        assert most[0] < 40 * MIB
