"""`mpack-gateway doctor`: what is wrong, and what mends it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from gateway.cli.exits import Exit, run
from gateway.cli.options import database_url_option, json_option, settings_of
from gateway.cli.output import print_json

if TYPE_CHECKING:
    from gateway.doctor.finding import Finding
    from gateway.settings import Settings

_COLOURS = {"ok": "green", "skipped": "blue", "warning": "yellow", "problem": "red"}


@click.command()
@database_url_option
@json_option
def doctor(database_url: str | None, *, as_json: bool) -> None:
    """Look at database, store, log and leases, and say of each problem what mends it.

    Takes a few seconds: it stores a blob, reads it by URL, waits until the URL is dead, and
    deletes it. Exit code 1 when there is a problem; warnings are none.
    """
    from gateway.logs import configure

    settings = settings_of(database_url)
    # What a check finds is told by its finding; the log would say it twice.
    configure(log_format=settings.log_format, level="critical")
    found = run(_doctor(settings, aloud=not as_json))
    sick = [one for one in found if one.health == "problem"]
    if as_json:
        print_json({"ok": not sick, "checks": [asdict(one) for one in found]})
    if sick:
        raise SystemExit(Exit.FAILED)


async def _doctor(settings: Settings, *, aloud: bool) -> list[Finding]:
    from gateway.cli.caller import caller
    from gateway.doctor.examine import examine

    found = []
    async for finding in examine(settings, caller=caller()):
        found.append(finding)
        if aloud:
            _tell(finding)
    return found


def _tell(finding: Finding) -> None:
    health = click.style(f"{finding.health.value:<8}", fg=_COLOURS[finding.health.value])
    click.echo(f"{health} {finding.check:<15} {finding.detail}")
    if finding.mend is not None:
        click.echo(f"{'':<24} -> {finding.mend}")
