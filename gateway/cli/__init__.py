"""The command line: `mpack-gateway`.

Verbs are imported when they are used, so that `--help` is there at once. Data goes to stdout, talk
to stderr. The exit codes stand in `exits.py`.
"""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import Any

import click

from gateway import __version__

# verb: module, function in it, what it is for (shown without importing it)
_VERBS = {
    "serve": ("gateway.cli.serve", "serve", "Serve the gateway."),
    "dev": ("gateway.cli.dev", "dev", "Serve with a PostgreSQL and a store of its own."),
    "demo": ("gateway.cli.demo", "demo", "See the whole life of a pack in a minute."),
    "stats": ("gateway.cli.stats", "stats", "See how the leases stand."),
    "doctor": ("gateway.cli.doctor", "doctor", "Look for what is wrong, and how to mend it."),
    "lease": ("gateway.cli.lease", "lease", "Look at leases, and move them."),
    "sweep": ("gateway.cli.sweep", "sweep", "Reap what is due, now."),
    "reap": ("gateway.cli.reap", "reap", "Pause and resume the deletions."),
    "events": ("gateway.cli.events", "events", "Follow and export the log."),
    "audit": ("gateway.cli.audit", "audit", "Check the log and the lease table, and report."),
    "token": ("gateway.cli.token", "token", "Make, list and revoke API tokens."),
    "repo": ("gateway.cli.repo", "repo", "Make, list and delete repositories."),
    "gc": ("gateway.cli.gc", "gc", "Remove content that no repository holds any more."),
    "object": ("gateway.cli.object", "object_", "Take one object's bytes out of the store."),
    "db": ("gateway.cli.db", "db", "Migrate and check the database."),
    "config": ("gateway.cli.config", "config", "Look at the settings."),
    "healthcheck": ("gateway.cli.healthcheck", "healthcheck", "Ask a gateway whether it serves."),
    "completion": ("gateway.cli.completion", "completion", "Print completion for a shell."),
}


# A disk that is full or fails under what a command writes is nobody's bug.
_NOT_WRITTEN = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


def _drop_stdout() -> None:
    """Let what could not be written go: the interpreter would try, and complain, once more."""
    with suppress(OSError):  # A stdout that is no file.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class LazyVerbs(click.Group):
    """A group that knows its verbs by name and imports one when it is asked for."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except OSError as error:
            if error.errno not in _NOT_WRITTEN:
                raise
            _drop_stdout()
            message = f"What this told could not be written: {error.strerror}."
            raise click.ClickException(message) from error

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        return list(_VERBS)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002  click's signature
        cmd_name: str,
    ) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        module, function, _about = _VERBS[cmd_name]
        command = getattr(import_module(module), function)
        assert isinstance(command, click.Command)
        return command

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002  click's signature
        formatter: click.HelpFormatter,
    ) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(verb, about) for verb, (_, _, about) in _VERBS.items()])


@click.command(cls=LazyVerbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mpack-gateway")
def main() -> None:
    """A storage gateway whose presigned packs are gone within a second of their deadline.

    Settings come from MPACK_* variables; `mpack-gateway config show` prints them. Exit codes:
    0 done, 1 failed, 2 wrong usage, 3 nothing matched, 4 done in part, 75 try again later.
    """
