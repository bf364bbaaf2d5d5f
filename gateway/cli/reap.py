"""`mpack-gateway reap`: stop and restart the deletions of every replica."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from gateway.cli.exits import Exit, run
from gateway.cli.options import database_url_option, json_option, quiet_logs, settings_of
from gateway.cli.output import print_json

if TYPE_CHECKING:
    from gateway.settings import Settings


@click.group()
def reap() -> None:
    """Pause and resume the deletions."""


@reap.command()
@click.option("--reason", required=True, help="Why; shown wherever the pause is.")
@database_url_option
@json_option
def pause(*, reason: str, database_url: str | None, as_json: bool) -> None:
    """Let no replica begin another deletion, until `reap resume`.

    Every replica obeys within a second, with a batch under way once that is done. Packs are
    served and leased as before; what falls due meanwhile waits.
    """
    settings = settings_of(database_url)
    quiet_logs(settings)
    _tell(run(_pause(settings, reason)), as_json=as_json)


@reap.command()
@click.option("--adopt", is_flag=True, help="Take the store over, whatever its mark says.")
@database_url_option
@json_option
def resume(*, adopt: bool, database_url: str | None, as_json: bool) -> None:
    """Let the replicas delete again.

    With --adopt also from a store whose mark names another log, or a later place in this one.
    Only blobs of this log are ever deleted; another log that still uses the store stops.
    """
    settings = settings_of(database_url)
    quiet_logs(settings)
    _tell(run(_resume(settings, adopt=adopt)), as_json=as_json)


def _tell(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
    else:
        click.echo(found["words"], err=True)
    if found["state"] == "paused" and not found["asked"]:
        raise SystemExit(Exit.TRY_LATER)


async def _pause(settings: Settings, reason: str) -> dict[str, Any]:
    from gateway.cli.caller import caller
    from gateway.cli.opened import opened_service

    async with opened_service(settings) as service:
        pauses = service.engine.owner.pauses
        news = await pauses.pause(reason=reason, caller=caller())
        said = await pauses.look()
    words = f"Reaping is {said}." if news else f"It was paused before: {said}."
    return {"state": "paused", "asked": True, "news": news, "words": words}


async def _resume(settings: Settings, *, adopt: bool) -> dict[str, Any]:
    from gateway.cli.caller import caller
    from gateway.cli.opened import opened_service
    from leases.owner import Ownership

    async with opened_service(settings) as service:
        owner = service.engine.owner
        if adopt:
            news = True
            state = await owner.adopt(caller=caller())
        else:
            news = await owner.pauses.resume(caller=caller())
            state = await owner.check()
    words = "Reaping is resumed." if news else "Reaping was not paused."
    if state is Ownership.PAUSED:
        words = f"Reaping stays paused: {owner.reason}. `reap resume --adopt` overrides the mark."
    elif adopt:
        words = "The store is this log's now; reaping is resumed, within a sweep interval."
    return {"state": state.value, "asked": False, "news": news, "words": words}
