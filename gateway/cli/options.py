"""Options that several verbs share, and the settings they lead to."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from gateway.cli.exits import told
from gateway.settings import Settings

Function = TypeVar("Function", bound=Callable[..., Any])

database_url_option = click.option(
    "--database-url",
    metavar="URL",
    help="Use this database instead of MPACK_DATABASE_URL.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def settings_of(database_url: str | None = None, **overrides: str | None) -> Settings:
    """The settings from the environment; what is wrong ends the command with sentences."""
    with told():
        return Settings.from_environment(database_url=database_url, **overrides)


def quiet_logs(settings: Settings) -> None:
    """Let a command's log lines be few: what it did is its output."""
    from gateway.logs import configure

    level = "debug" if settings.log_level == "debug" else "warning"
    form = "console" if sys.stderr.isatty() else settings.log_format
    configure(log_format=form, level=level)
