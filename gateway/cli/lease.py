"""`mpack-gateway lease`: leases, as the table and the log tell them, and what moves them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

import click

from gateway.cli.exits import Exit, run
from gateway.cli.moments import Moment, Span
from gateway.cli.options import database_url_option, json_option, quiet_logs, settings_of
from gateway.cli.output import print_json, print_pairs, print_rows, told_of

if TYPE_CHECKING:
    from datetime import timedelta

    from gateway.lease_listing import Page, StateFilter
    from gateway.service import Service
    from gateway.settings import Settings
    from leases.errors import Failure
    from leases.model import Lease

_COLUMNS = ("mpack_id", "state", "kind", "size_bytes", "granted_at", "delete_at", "outcome")
_EVENT_COLUMNS = ("version", "recorded_at", "type", "actor", "position", "what")
_STATES = ("reserved", "active", "reclaimed", "stuck", "due")
_LIMIT_MAX = 1000

Verb = TypeVar("Verb", bound=Callable[..., Any])


@click.group()
def lease() -> None:
    """Look at leases, and move them."""


@lease.command("list")
@click.option("--state", type=click.Choice(_STATES), help="Only these.")
@click.option("--repo", metavar="OWNER/SLUG", help="Only this repo's.")
@click.option("--prefix", default="", metavar="HEX", help="Only ids that begin with this.")
@click.option(
    "--since", type=Moment(past=True), metavar="WHEN", help="Granted then or later, such as 10m."
)
@click.option("--until", type=Moment(past=True), metavar="WHEN", help="Granted before then.")
@click.option("--limit", type=click.IntRange(1, _LIMIT_MAX), default=100, show_default=True)
@click.option("--cursor", metavar="ID", help="Go on behind this id, as told by the last page.")
@database_url_option
@json_option
def list_(database_url: str | None, *, as_json: bool, **wanted: Any) -> None:
    """List leases, the newest first."""
    page = run(_page(settings_of(database_url), wanted))
    if as_json:
        print_json({"leases": page.rows, "next": page.next})
    else:
        print_rows(page.rows, _COLUMNS)
    if page.next is not None:
        click.echo(f"There are more: --cursor {page.next}", err=True)
    if not page.rows:
        click.echo("No lease matched.", err=True)
        raise SystemExit(Exit.NOTHING_MATCHED)


async def _page(settings: Settings, wanted: dict[str, Any]) -> Page:
    from gateway.cli.opened import opened_database
    from gateway.cli.repo import repo_named
    from gateway.lease_listing import LeaseFilter, LeaseListing

    async with opened_database(settings) as database:
        repo_id = None
        if wanted["repo"] is not None:
            repo_id = (await repo_named(database, wanted["repo"])).repo_id
        chosen = LeaseFilter(
            repo_id=repo_id,
            state=cast("StateFilter | None", wanted["state"]),
            granted_from=wanted["since"],
            granted_before=wanted["until"],
            id_prefix=wanted["prefix"],
        )
        return await LeaseListing(database).leases(
            chosen, limit=wanted["limit"], cursor=wanted["cursor"]
        )


@lease.command()
@click.argument("mpack_id")
@database_url_option
@json_option
def show(mpack_id: str, database_url: str | None, *, as_json: bool) -> None:
    """Show one lease and its events; the beginning of its id is enough if it is the only one."""
    found = run(_show(settings_of(database_url), mpack_id))
    if as_json:
        print_json(found)
        return
    events = found.pop("events")
    print_pairs(found)
    click.echo()
    print_rows([event | {"what": told_of(event["data"])} for event in events], _EVENT_COLUMNS)


async def _show(settings: Settings, prefix: str) -> dict[str, Any]:
    from gateway.cli.opened import opened_database
    from gateway.lease_listing import LeaseListing

    async with opened_database(settings) as database:
        listing = LeaseListing(database)
        return await listing.lease(await listing.resolve(prefix))


# What moves a lease. -----------------------------------------------------------------------------


def _moves(verb: Verb) -> Verb:
    """What the moving verbs share: several ids, or their beginnings, and how it is told."""
    ids = click.argument("mpack_ids", nargs=-1, metavar="ID...")
    return ids(database_url_option(json_option(verb)))


_reason_option = click.option("--reason", required=True, help="Why; it is kept in the log.")


@lease.command()
@click.option(
    "--ttl", type=Span(), required=True, metavar="SPAN", help="Let it live so long from now: 10m."
)
@_moves
def renew(ttl: timedelta, **asked: Any) -> None:
    """Let leases live longer; it never shortens them, and never goes beyond their longest life."""

    async def work(service: Service, mpack_id: str) -> Lease:
        from gateway.cli.caller import caller

        return await service.engine.lessor.renew(
            mpack_id,
            ttl_seconds=ttl.total_seconds(),
            # The share of the TTL that sharing demands is about callers who wait for a pack.
            guard_seconds=service.settings.lease.share_guard_seconds,
            caller=caller(),
        )

    _move(work, **asked)


@lease.command()
@click.option("--reason", help="Why; it is kept in the log. Needed, but with --dry-run.")
@click.option("--repo", metavar="REPO", help="All of this repo, by OWNER/SLUG or its id.")
@click.option("--prefix", default="", metavar="HEX", help="All whose ids begin with this.")
@click.option("--limit", type=click.IntRange(min=1), help="Of those, revoke at most so many.")
@click.option("--dry-run", is_flag=True, help="Only say how many of those there are.")
@_moves
def revoke(
    *,
    reason: str | None,
    repo: str | None,
    prefix: str,
    limit: int | None,
    dry_run: bool,
    **asked: Any,
) -> None:
    """End leases now: their packs are deleted as if their deadline had come.

    A URL that was handed out goes on working until its blob is deleted: within a second, while a
    replica runs. With --repo or --prefix instead of ids: all leases that are open now, in batches;
    Ctrl-C ends it after the batch under way, and the same command goes on from there.

    Exit codes: 3 nothing matched, 4 not all of it was done.
    """
    many = repo is not None or bool(prefix)
    if many and asked["mpack_ids"]:
        raise click.UsageError("Name leases, or choose them by --repo or --prefix; not both.")
    if not many and (dry_run or limit):
        raise click.UsageError("--dry-run and --limit go with --repo or --prefix.")
    if not reason and not dry_run:
        raise click.UsageError("Say why: --reason.")
    if many:
        _revoke_many(asked, repo=repo, prefix=prefix, reason=reason, limit=limit, dry_run=dry_run)

    async def work(service: Service, mpack_id: str) -> Lease:
        from gateway.cli.caller import caller

        return await service.engine.lessor.revoke(mpack_id, reason=reason or "", caller=caller())

    _move(work, **asked)


def _revoke_many(asked: dict[str, Any], **chosen: Any) -> NoReturn:
    from gateway.cli.revocation import Asked, revoke_many

    settings = settings_of(asked["database_url"])
    quiet_logs(settings)
    raise SystemExit(revoke_many(settings, Asked(**chosen), as_json=asked["as_json"]))


@lease.command()
@click.option("--stuck", is_flag=True, help="Retry every stuck lease.")
@_moves
def retry(*, stuck: bool, **asked: Any) -> None:
    """Let failed deletions be tried again now, as if they had never failed."""
    if stuck and asked["mpack_ids"]:
        raise click.UsageError("--stuck means all of them: name no ids.")

    async def work(service: Service, mpack_id: str) -> Lease:
        from gateway.cli.caller import caller

        return await service.engine.lessor.retry(mpack_id, caller=caller())

    _move(work, stuck=stuck, **asked)


@lease.command()
@_reason_option
@_moves
def forget(reason: str, **asked: Any) -> None:
    """Close due leases whose blobs cannot be deleted, and never try again.

    What still lies there is nobody's: `sweep --orphans` goes on listing it, and nothing deletes
    it.
    """

    async def work(service: Service, mpack_id: str) -> Lease:
        from gateway.cli.caller import caller

        return await service.engine.lessor.forget(mpack_id, reason=reason, caller=caller())

    _move(work, **asked)


Work = Callable[["Service", str], Awaitable["Lease"]]


def _move(
    work: Work,
    *,
    mpack_ids: Sequence[str],
    database_url: str | None,
    as_json: bool,
    stuck: bool = False,
) -> None:
    if not mpack_ids and not stuck:
        raise click.UsageError("Name at least one lease.")
    settings = settings_of(database_url)
    quiet_logs(settings)
    moved, refused = run(_moved(settings, work, mpack_ids, stuck=stuck))
    if as_json:
        told = [{"mpack_id": one, "message": str(why)} for one, why in refused.items()]
        print_json({"leases": moved, "refused": told})
    elif moved:
        print_rows(moved, _COLUMNS)
    for mpack_id, why in refused.items():
        click.echo(f"{mpack_id}: {why.message}", err=True)
    raise SystemExit(_exit_code(moved, refused))


def _exit_code(moved: Sequence[object], refused: dict[str, Failure]) -> int:
    from gateway.cli.exits import exit_code_of

    if refused and moved:
        return Exit.PARTIAL
    if not moved and not refused:
        click.echo("No lease is stuck.", err=True)
        return Exit.NOTHING_MATCHED
    codes = {exit_code_of(why) for why in refused.values()}
    return codes.pop() if len(codes) == 1 else Exit.OK if not refused else Exit.FAILED


async def _moved(
    settings: Settings, work: Work, prefixes: Sequence[str], *, stuck: bool
) -> tuple[list[dict[str, Any]], dict[str, Failure]]:
    """Every lease for itself: what one of them refuses does not stop the others."""
    from gateway.cli.opened import opened_service
    from leases.errors import Failure

    moved: list[dict[str, Any]] = []
    refused: dict[str, Failure] = {}
    async with opened_service(settings) as service:
        if stuck:
            prefixes = await service.listing.stuck_ids()
        for prefix in prefixes:
            try:
                mpack_id = await service.listing.resolve(prefix)
                await work(service, mpack_id)
                moved.append(await service.listing.lease(mpack_id))
            except Failure as failure:
                refused[prefix] = failure
    return moved, refused
