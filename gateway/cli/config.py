"""`mpack-gateway config`: the settings in force."""

from __future__ import annotations

import click

from gateway.cli.exits import Exit
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


@config.command()
@database_url_option
@json_option
def check(database_url: str | None, *, as_json: bool) -> None:
    """Check the settings, without using them; exit code 2 with a sentence for each problem."""
    from gateway.settings import Settings, SettingsInvalid

    try:
        Settings.from_environment(database_url=database_url)
    except SettingsInvalid as error:
        if not as_json:
            raise click.UsageError(str(error)) from None
        print_json({"ok": False, "problems": error.problems})
        raise SystemExit(Exit.USAGE) from None
    if as_json:
        print_json({"ok": True, "problems": []})
    else:
        click.echo("The settings can be used.", err=True)


@config.command()
@json_option
def example(*, as_json: bool) -> None:
    """Print every setting with its default, ready for an environment file."""
    from gateway.environment import named_fields
    from gateway.settings import Settings

    found = list(named_fields(Settings))
    if as_json:
        print_json({item.variable: None if item.required else item.default for item in found})
        return
    click.echo("# Every setting of mpack-gateway; what is commented out shows its default.")
    for item in found:
        value = "" if item.default is None else item.default
        text = str(value).lower() if isinstance(value, bool) else str(value)
        mark = "" if item.required else "#"
        text = "postgresql://user@host/name" if item.name == "database_url" else text
        click.echo(f"{mark}{item.variable}={text}")
