"""Options that several verbs share, and the settings they lead to."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gateway.cli.exits import Exit, told

if TYPE_CHECKING:
    from gateway.settings import Settings

Function = TypeVar("Function", bound=Callable[..., Any])

database_url_option = click.option(
    "--database-url",
    metavar="URL",
    help="Use this database instead of MPACK_DATABASE_URL.",
)
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def settings_of(database_url: str | None = None, **overrides: str | None) -> Settings:
    """The settings from the environment; what is wrong ends the command with sentences."""
    from gateway.settings import Settings

    with told():
        return Settings.from_environment(database_url=database_url, **overrides)


def confirmed(question: str, *, yes: bool) -> None:
    """Ask a person before what cannot be undone; a script says --yes."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("There is nobody to ask; --yes does it without asking.")
    if not click.confirm(question, err=True):
        raise SystemExit(Exit.USAGE)


def quiet_logs(settings: Settings) -> None:
    """Let a command's log lines be few: what it did is its output."""
    from gateway.logs import configure

    level = "debug" if settings.log_level == "debug" else "warning"
    form = "console" if sys.stderr.isatty() else settings.log_format
    configure(log_format=form, level=level)
