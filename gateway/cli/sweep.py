"""`mpack-gateway sweep`: reap what is due, by the same function as the service's own workers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from gateway.cli.exits import Exit, run
from gateway.cli.moments import Span
from gateway.cli.options import database_url_option, json_option, quiet_logs, settings_of
from gateway.cli.output import print_json, print_line, print_pairs
from gateway.cli.progress import progress

if TYPE_CHECKING:
    import asyncio

    from gateway.service import Service
    from gateway.settings import Settings
    from leases.reconcile import ReconcileResult
    from leases.settlement import SweepResult

_NAMED_MAX = 10  # Of the ids, for people.


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    dry_run: bool
    limit: int | None
    older_than: timedelta
    orphans: bool
    watch: bool


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what is due.")
@click.option("--limit", type=click.IntRange(min=1), help="Reap at most so many leases.")
@click.option(
    "--older-than", type=Span(), default=timedelta(), metavar="SPAN",
    help="Only leases that are overdue by more than this, such as 10m.",
)  # fmt: skip
@click.option(
    "--orphans", is_flag=True, help="Compare the store with the lease table, both ways, instead."
)
@click.option("--watch", is_flag=True, help="Again and again, until Ctrl-C.")
@database_url_option
@json_option
def sweep(database_url: str | None, *, as_json: bool, **asked: Any) -> None:
    """Delete the blobs of all leases that are due, and record it.

    Nothing is deleted while reaping is paused. Ctrl-C ends it after the batch under way.
    With --orphans: blobs without a lease get one, blobs that came back after their lease had
    ended are deleted, and what a person should look at is listed.

    Exit codes: 3 nothing to do, 4 not all of it could be done, 75 paused or unreachable.
    """
    wanted = _Asked(**asked)
    if wanted.orphans and (wanted.limit or wanted.older_than):
        raise click.UsageError("--orphans takes neither --limit nor --older-than.")
    settings = settings_of(database_url)
    quiet_logs(settings)
    raise SystemExit(run(_rounds(settings, wanted, as_json=as_json)))


async def _rounds(settings: Settings, asked: _Asked, *, as_json: bool) -> Exit:
    from gateway.cli.interrupt import stoppable
    from gateway.cli.opened import check_store_folder, opened_service
    from gateway.waiting import came
    from leases.errors import Unavailable

    check_store_folder(settings)
    with stoppable() as stop:
        async with opened_service(settings) as service:
            while True:
                try:
                    told, code = await _round(service, asked, stop=stop)
                    _print(told, as_json=as_json, one_line=asked.watch)
                except Unavailable as failure:
                    if not asked.watch:
                        raise
                    click.echo(str(failure), err=True)
                if not asked.watch:
                    return code
                if await came(stop, seconds_max=settings.lease.sweep_interval_seconds):
                    return Exit.OK


async def _round(
    service: Service, asked: _Asked, *, stop: asyncio.Event
) -> tuple[dict[str, Any], Exit]:
    if not asked.dry_run:
        await _check_allowed(service)
    if asked.orphans:
        found = await service.engine.reconciler.run_once(dry_run=asked.dry_run)
        return _orphans_told(found) | {"dry_run": asked.dry_run}, _exit_of_orphans(found)
    if asked.dry_run:
        result = await service.engine.reaper.look(limit=asked.limit, overdue=asked.older_than)
    else:
        result = await _sweep(service, asked, stop=stop)
    told = asdict(result) | {"dry_run": asked.dry_run}
    return told, _exit_code(result, interrupted=stop.is_set() and not asked.watch)


async def _check_allowed(service: Service) -> None:
    from leases.errors import Unavailable

    await service.engine.owner.check()
    if not service.engine.owner.may_reap():
        raise Unavailable(f"Reaping is paused: {service.engine.owner.reason}.")


async def _sweep(service: Service, asked: _Asked, *, stop: asyncio.Event) -> SweepResult:
    from leases.settlement import SweepResult
    from leases.stats import read_stats

    due = (await read_stats(service.database)).overdue
    total = SweepResult()
    with progress("reclaimed", min(due, asked.limit or due)) as tell:
        async for result in _batches(service, asked, stop=stop):
            total.add(result)
            if result.claimed:
                tell(total.reclaimed)
    return total


async def _batches(
    service: Service, asked: _Asked, *, stop: asyncio.Event
) -> AsyncIterator[SweepResult]:
    """As many batches side by side as a service has workers, until nothing more is due."""
    import asyncio

    from leases.model import Trigger

    engine, left = service.engine, asked.limit
    while left is None or left > 0:
        count = engine.reaper.batch
        sizes = [count] * engine.policy.reap_workers if left is None else [min(count, left)]
        results = await asyncio.gather(
            *(
                engine.reaper.reap_once(Trigger.COMMAND, limit=size, overdue=asked.older_than)
                for size in sizes
            )
        )
        for result in results:
            yield result
            left = None if left is None else left - result.claimed
        if stop.is_set() or any(one.handed_back for one in results):
            return
        claimed = sum(one.claimed for one in results)
        if claimed < sum(sizes) and not (claimed and engine.reaper.circuit.is_ramping):
            return
        await engine.owner.obey()


def _exit_code(result: SweepResult, *, interrupted: bool) -> Exit:
    if result.failed or result.handed_back:
        return Exit.PARTIAL if result.reclaimed else Exit.TRY_LATER
    if interrupted:
        return Exit.PARTIAL
    return Exit.OK if result.claimed else Exit.NOTHING_MATCHED


def _orphans_told(found: ReconcileResult) -> dict[str, Any]:
    return {
        "listed": found.listed,
        "adopted": found.adopted,
        "residue_deleted": found.residue_deleted,
        "findings_count": found.findings_count,
        "findings": [{"finding": kind.value, "key": key} for kind, key in found.findings],
    }


def _exit_of_orphans(found: ReconcileResult) -> Exit:
    if found.findings_count:
        return Exit.PARTIAL
    return Exit.OK if found.adopted or found.residue_deleted else Exit.NOTHING_MATCHED


def _print(told: dict[str, Any], *, as_json: bool, one_line: bool) -> None:
    if as_json:
        (print_line if one_line else print_json)(told)
        return
    if "mpack_ids" in told:
        told["mpack_ids"] = _some(told["mpack_ids"])
    findings = [f"{one['finding']} {one['key']}" for one in told.pop("findings", ())]
    if one_line:
        words = (f"{name}={value}" for name, value in told.items() if value)
        click.echo(" ".join(words) or "nothing to do")
    else:
        print_pairs(told)
    for line in findings:
        click.echo(f"finding  {line}")


def _some(mpack_ids: Sequence[str]) -> str | None:
    """After an outage there are thousands, and the counts are what is looked for."""
    if len(mpack_ids) <= _NAMED_MAX:
        return " ".join(mpack_ids) or None
    return f"{' '.join(mpack_ids[:_NAMED_MAX])} …; --json names more"
