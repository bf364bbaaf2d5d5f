"""`mpack-gateway gc`: make room, by removing what no repository holds any more."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from gateway.cli.exits import Exit, run
from gateway.cli.moments import Span
from gateway.cli.options import database_url_option, json_option, quiet_logs, settings_of
from gateway.cli.output import print_json, print_pairs
from gateway.cli.progress import progress

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from gateway.packs.garbage import Removed
    from gateway.settings import Settings

_NAMES = {
    "repo": "repos", "commit": "commits", "snapshot": "snapshots", "object": "objects",
    "segment": "segments", "joined": "segments_joined", "blob": "blobs_deleted",
    "failed": "blobs_failed",
}  # fmt: skip


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option(
    "--unfinished-after", type=Span(), default=timedelta(days=1), metavar="SPAN",
    help="Give up uploads that began so long ago and never ended (1d).",
)  # fmt: skip
@click.option(
    "--keep-joined", type=Span(), default=timedelta(days=7), metavar="SPAN",
    help="Keep the old blobs of joined segments for so long (7d).",
)  # fmt: skip
@click.option("--no-join", is_flag=True, help="Leave small segments as they are.")
@database_url_option
@json_option
def gc(
    *,
    dry_run: bool,
    unfinished_after: timedelta,
    keep_joined: timedelta,
    no_join: bool,
    database_url: str | None,
    as_json: bool,
) -> None:
    """Remove commits, snapshots, objects and segments that no repository holds any more, and join
    small segments into larger ones.

    Safe while pushes and fetches go on. Every removed id is named in an event. Ctrl-C ends it
    after the batch under way; the next run goes on from there.

    Exit codes: 3 there was nothing, 4 stopped, or the store did not delete all.
    """
    settings = settings_of(database_url)
    quiet_logs(settings)
    ages = {"unfinished_after": unfinished_after, "keep_joined": keep_joined}
    removed, size, stopped = run(_gc(settings, ages, dry_run=dry_run, join=not no_join))
    told = {name: removed[kind] for kind, name in _NAMES.items()}
    told |= {"bytes": size, "dry_run": dry_run}
    if as_json:
        print_json(told)
    else:
        print_pairs(told)
    if stopped or removed["failed"]:
        raise SystemExit(Exit.PARTIAL)
    if not removed:
        raise SystemExit(Exit.NOTHING_MATCHED)


async def _gc(
    settings: Settings, ages: dict[str, timedelta], *, dry_run: bool, join: bool
) -> tuple[Counter[str], int, bool]:
    """What was removed by kind, the segments' bytes, and whether it was stopped."""
    from gateway.cli.caller import caller
    from gateway.cli.interrupt import stoppable
    from gateway.cli.opened import check_store_folder, opened_service
    from gateway.packs.garbage import Garbage
    from gateway.packs.garbage_rows import Kind
    from gateway.packs.joining import Joining
    from gateway.service import steps_of

    check_store_folder(settings)
    removed: Counter[str] = Counter()
    size = 0
    with stoppable() as stop, progress("removed") as tell:
        async with opened_service(settings) as service:
            steps = steps_of(settings.crash_at)
            parts = (service.database, service.engine.log, service.store)
            garbage = Garbage(*parts, steps=steps)
            joining = Joining(*parts, policy=settings.pack, steps=steps)
            if dry_run:
                works = [
                    garbage.look(**ages),
                    joining.look(spared=await garbage.spared()),
                ]
            else:
                me = caller()
                works = [
                    garbage.collect(caller=me, **ages),
                    joining.join(caller=me),
                ]
            async for part in _one_after_the_other(works if join else works[:1]):
                removed[part.kind.value] += part.count
                size += part.size_bytes if part.kind is Kind.SEGMENT else 0
                if not dry_run:
                    tell(removed.total())
                if stop.is_set():
                    return +removed, size, True
    return +removed, size, False


async def _one_after_the_other(
    works: Sequence[AsyncIterator[Removed]],
) -> AsyncIterator[Removed]:
    for work in works:
        async for part in work:
            yield part
