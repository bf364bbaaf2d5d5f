"""`lease revoke --repo`, `--prefix`: many leases as a job, with a look at it beforehand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.cli.exits import Exit, run
from gateway.cli.output import print_json, print_pairs
from gateway.cli.progress import progress

if TYPE_CHECKING:
    from gateway.service import Service
    from gateway.settings import Settings
    from leases.revocation import Chosen, Revocation


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The job as it was asked for; an empty prefix is any."""

    repo: str | None
    prefix: str
    reason: str | None
    limit: int | None
    dry_run: bool


def revoke_many(settings: Settings, asked: Asked, *, as_json: bool) -> Exit:
    """Do it, and say what became of it."""
    told, code = run(_revoke(settings, asked))
    if as_json:
        print_json(told)
    else:
        print_pairs(told)
    return code


async def _revoke(settings: Settings, asked: Asked) -> tuple[dict[str, int | bool], Exit]:
    from gateway.cli.interrupt import stoppable
    from gateway.cli.opened import opened_service
    from leases.revocation import Revocation

    with stoppable() as stop:
        async with opened_service(settings) as service:
            chosen = await _chosen(service, asked)
            job = Revocation(
                service.database,
                service.engine.log,
                replica=service.engine.instance.instance_id,
            )
            found = await job.look(chosen)
            told: dict[str, int | bool] = {"matched": found.leases, "bytes": found.bytes}
            if asked.dry_run:
                code = Exit.OK if found.leases else Exit.NOTHING_MATCHED
                return told | {"revoked": 0, "dry_run": True}, code
            revoked, left = await _run(job, chosen, asked, found.leases, stopped=stop.is_set)
    told |= {"revoked": revoked, "dry_run": False}
    if not found.leases:
        return told, Exit.NOTHING_MATCHED
    return told, Exit.PARTIAL if left else Exit.OK


async def _chosen(service: Service, asked: Asked) -> Chosen:
    """The repo by its name or, since leases outlive it, by its id."""
    from gateway.cli.repo import repo_named
    from gateway.lease_listing import check_prefix
    from leases.revocation import Chosen

    if asked.prefix:
        check_prefix(asked.prefix)
    repo_id = asked.repo
    if asked.repo is not None and "/" in asked.repo:
        repo_id = (await repo_named(service.database, asked.repo)).repo_id
    return Chosen(repo_id=repo_id, id_prefix=asked.prefix)


async def _run(
    job: Revocation, chosen: Chosen, asked: Asked, total: int, *, stopped: Callable[[], bool]
) -> tuple[int, bool]:
    """How many were revoked, and whether some were left."""
    from gateway.cli.caller import caller

    total = min(total, asked.limit or total)
    revoked, left = 0, False
    with progress("revoked", total) as tell:
        work = job.batches(chosen, reason=asked.reason or "", caller=caller(), limit=asked.limit)
        async for done in work:
            revoked += done.revoked
            left = left or done.left > 0
            tell(revoked)
            if stopped():
                return revoked, revoked < total
    # What somebody moved meanwhile was met again, or has ended by itself.
    return revoked, left and revoked < total
