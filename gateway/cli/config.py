"""`mpack-gateway config`: the settings in force."""

from __future__ import annotations

import click

from gateway.cli.options import database_url_option, json_option, settings_of
from gateway.cli.output import print_json, print_pairs


@click.group()
def config() -> None:
    """Look at the settings."""


@config.command()
@database_url_option
@json_option
def show(database_url: str | None, *, as_json: bool) -> None:
    """Print every setting, without secrets."""
    shown = settings_of(database_url).redacted()
    if as_json:
        print_json(shown)
    else:
        print_pairs({f"MPACK_{name.upper()}": value for name, value in shown.items()})
